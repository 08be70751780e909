"""Do a checkpoint's weights fit the model? mmengine loads what fits and only logs the rest."""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner, Runner

from mmdyn.converters.formats import weights_of
from mmdyn.engine.wrappers import unwrapped
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.new_parameters import is_new


class CheckWeightsHook(Hook):
    """Refuses a checkpoint that does not fit, before the model gets anything of it.

    Args:
        runner: With the model built, and not yet cut into shards.
        whole: Whether every parameter must be there, as a test needs it; to start a
            training from, one is enough. Predictors and fast paths may be missing
            where every keep ratio is 1.

    Raises:
        ValueError: In a run, if the weights don't fit, or the training to resume can't be.
    """

    priority = 'HIGHEST'

    def __init__(self, runner: Runner, *, whole: bool) -> None:
        self.whole = whole
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
        lost = [key for key, shape in self.shapes.items() if given.get(key) != shape]
        if self._matters(lost) and not isinstance(runner, FlexibleRunner):
            lost = self._lost_when_loaded(checkpoint, lost)
        remedy = f'give a checkpoint of the whole {type(self.model).__name__} of this config'
        if len(lost) == len(self.shapes):
            raise ValueError(
                f"checkpoint {path} holds no parameter of the config's model, by name and shape "
                f'(it holds e.g. {next(iter(given.items()))}): {remedy}; the weights of a backbone '
                "alone belong into model.backbone.init_cfg=dict(type='Pretrained', checkpoint=PATH)"
            )
        if not self.whole:
            return
        dense = _needed(lost)
        if dense:
            raise ValueError(
                f"checkpoint {path} does not hold {len(dense)} of the model's {len(self.shapes)} "
                f'parameters, e.g. {dense[0]} of shape {self.shapes[dense[0]]} (there it is '
                f'{given.get(dense[0], "missing")}): {remedy}'
            )
        backbone = getattr(self.model, 'backbone', None)
        keeps_all = isinstance(backbone, DynamicBackbone) and min(backbone.keep_ratios) == 1
        new = [key for key in lost if is_new(key)]
        if new and not keeps_all:
            raise ValueError(
                f'checkpoint {path} is of a dense model: {len(new)} parameters of predictors and '
                f'fast paths, e.g. {new[0]}, would be random. Train the sparse model first, or '
                'keep everything, --keep-ratio 1 or --cfg-options model.backbone.keep_ratios=1,1,1'
            )

    def _matters(self, lost: list[str]) -> bool:
        return len(lost) == len(self.shapes) or (self.whole and bool(_needed(lost)))

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
        with contextlib.suppress(RuntimeError):  # shapes differ; the rest was loaded
            twin.load_state_dict(state, strict=False)
        values = dict(twin.named_parameters())
        return [key for key in lost if values[key].isnan().all()]


def _needed(keys: list[str]) -> list[str]:
    """Those that every test runs; auxiliary heads help a training only."""
    return [key for key in keys if not (is_new(key) or key.startswith('auxiliary_head.'))]


def _can_be_resumed(checkpoint: dict[str, Any]) -> bool:
    meta = checkpoint.get('meta')
    return isinstance(meta, dict) and {'epoch', 'iter'} <= set(meta)
