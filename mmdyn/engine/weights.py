"""Do a checkpoint's weights fit the model? mmengine loads what fits and only logs the rest."""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner, Runner

from mmdyn.converters.additions import is_new
from mmdyn.converters.formats import weights_of
from mmdyn.engine.wrappers import unwrapped
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.backbones.pretrained import dense_names
from mmdyn.models.deciding import KEEP_EVERYTHING, missing_in_use


class CheckWeightsHook(Hook):
    """Refuses a checkpoint that does not fit, before the model gets anything of it.

    Args:
        runner: With the model built, and not yet cut into shards.
        whole: Whether every parameter must be there, as a test needs it; to start a
            training from, one is enough, but a sparse backbone that gets any of its dense
            parameters must get all. Predictors and fast paths may be missing
            in parts of the model that keep everything.
        any_ratio: Whether the ratios change later on, so that these must be there too.

    Raises:
        ValueError: In a run, if the weights don't fit, or the training to resume can't be.
    """

    priority = 'HIGHEST'

    def __init__(self, runner: Runner, *, whole: bool, any_ratio: bool = False) -> None:
        self.whole = whole
        self.any_ratio = any_ratio
        self.model = unwrapped(runner.model)
        self.shapes = {key: tuple(own.shape) for key, own in self.model.named_parameters()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: Any) -> None:
        """See the class."""
        path = runner.cfg.get('load_from')
        try:
            state, _ = weights_of(checkpoint)
        except ValueError as error:
            raise ValueError(f'checkpoint {path}: {error}') from error
        if runner.cfg.get('resume') and not _can_be_resumed(checkpoint):
            raise ValueError(
                f'checkpoint {path} holds weights and no state of a training, so it cannot be '
                'resumed: start from it, with --cfg-options load_from=PATH in place of --resume'
            )
        own = isinstance(checkpoint.get('state_dict'), Mapping)
        if not own and isinstance(checkpoint.get('model'), Mapping):
            checkpoint['state_dict'] = checkpoint['model']  # mmengine looks nowhere else
        given = {key: tuple(value.shape) for key, value in state.items()}
        sharded = isinstance(runner, FlexibleRunner)
        lost = [key for key, shape in self.shapes.items() if given.get(key) != shape]
        if (len(lost) == len(self.shapes) or self._needed(lost)) and not sharded:
            lost = self._lost_when_loaded(checkpoint, lost)
        remedy = f'give a checkpoint of the whole {type(self.model).__name__} of this config'
        if len(lost) == len(self.shapes):
            raise ValueError(
                f"checkpoint {path} holds no parameter of the config's model, by name and shape "
                f'(it holds e.g. {next(iter(given.items()))}): {remedy}; the weights of a backbone '
                "alone belong into model.backbone.init_cfg=dict(type='Pretrained', checkpoint=PATH)"
            )
        # Sharded, a model is judged by names alone, which some backbones change as they load.
        if (needed := self._needed(lost)) and (self.whole or not sharded):
            raise ValueError(
                f"checkpoint {path} does not hold {len(needed)} of the model's {len(self.shapes)} "
                f'parameters, e.g. {needed[0]} of shape {self.shapes[needed[0]]} (there it is '
                f'{given.get(needed[0], "missing")}): {remedy}'
            )
        if not self.whole:
            return
        new = missing_in_use(self.model, lost)[1]
        if self.any_ratio:
            new = [key for key in lost if is_new(key)]
        if new:
            raise ValueError(
                f'checkpoint {path} is of a dense model: {len(new)} parameters of predictors and '
                f'fast paths, e.g. {new[0]}, would be untrained. Train the sparse model first, '
                'test the dense one with the stock config, or, in test.py and export.py, keep '
                f'everything: {KEEP_EVERYTHING}'
            )

    def _needed(self, lost: list[str]) -> list[str]:
        """Of what is lost, the dense parameters that must not be."""
        if self.whole:
            return missing_in_use(self.model, lost)[0]
        backbone = getattr(self.model, 'backbone', None)
        if not isinstance(backbone, DynamicBackbone):
            return []
        # A training may start without a backbone, whose init_cfg has filled it, not with a part.
        dense = dense_names(backbone, 'backbone.')
        absent = [key for key in dense if key in lost]
        return absent if len(absent) < len(dense) else []

    def _lost_when_loaded(self, checkpoint: Any, lost: list[str]) -> list[str]:
        """Those that get no value by modules either that rename keys as they load."""
        # A copy keeps what modules tell old versions by, an attribute of the state dict.
        state = copy.copy(checkpoint.get('state_dict', checkpoint))
        for key in [key for key in state if key.startswith('module.')]:
            state[key.removeprefix('module.')] = state.pop(key)
        try:
            twin = copy.deepcopy(self.model)
        except Exception:  # tensors that were computed can't be copied: names alone must do
            return lost
        with torch.no_grad():
            for parameter in filter(torch.is_floating_point, twin.parameters()):
                parameter.fill_(torch.nan)
        # Shapes may differ: the rest was loaded. What it logs, the model's own loading will too.
        with contextlib.suppress(RuntimeError), no_logs():
            twin.load_state_dict(state, strict=False)
        values = dict(twin.named_parameters())
        return [key for key in lost if values[key].isnan().all()]


@contextlib.contextmanager
def no_logs() -> Iterator[None]:
    """Log nothing but errors for a while."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _can_be_resumed(checkpoint: dict[str, Any]) -> bool:
    meta = checkpoint.get('meta')
    return isinstance(meta, dict) and {'epoch', 'iter'} <= set(meta)
