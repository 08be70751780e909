"""Do a checkpoint's weights fit the model? mmengine loads what fits and only logs the rest."""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner, Runner

from mmdyn.converters.formats import weights_of
from mmdyn.engine.wrappers import unwrapped
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.weights import dense_names, load_weights


class CheckWeightsHook(Hook):
    """Refuses a checkpoint that does not fit.

    Args:
        runner: With the model built. A FlexibleRunner's checkpoint is not checked: its strategy
            may have cut the parameters into shards.
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

    def after_load_checkpoint(self, runner: Runner, checkpoint: Any) -> None:
        """See the class."""
        path = f'checkpoint {runner.cfg.get("load_from")}'
        weights_of(checkpoint, path)
        meta = checkpoint.get('meta')
        resumable = isinstance(meta, dict) and {'epoch', 'iter'} <= set(meta)
        if runner.cfg.get('resume') and not resumable:
            raise ValueError(
                f'{path} holds weights and no state of a training, so it cannot be resumed: start '
                'from it, with --cfg-options load_from=PATH in place of --resume'
            )
        own = isinstance(checkpoint.get('state_dict'), Mapping)
        if not own and isinstance(checkpoint.get('model'), Mapping):
            checkpoint['state_dict'] = checkpoint['model']  # mmengine looks nowhere else
        backbone = getattr(self.model, 'backbone', None)
        if isinstance(runner, FlexibleRunner):  # whose strategy may have cut parameters to shards
            return
        # mmengine loads it again, and logs what this does. A copy keeps what modules tell old
        # versions by, an attribute of the state dict.
        state = copy.copy(checkpoint.get('state_dict', checkpoint))
        for key in [key for key in state if key.startswith('module.')]:
            state[key.removeprefix('module.')] = state.pop(key)
        with no_logs():
            report = load_weights(self.model, state, path, shapes_may_differ=True)
        if self.whole:
            report.check_in_use(self.model, self.any_ratio)
        elif isinstance(backbone, DynamicBackbone):
            # A training may start without a backbone, whose init_cfg has filled it, not with a
            # part.
            dense = dense_names(backbone, 'backbone.')
            absent = [key for key in dense if key in report.missing]
            if 0 < len(absent) < len(dense):
                raise ValueError(
                    f'{path} lacks {len(absent)} of {len(dense)} parameters of the dense backbone, '
                    f'e.g. {absent[0]}: give a checkpoint of the whole {type(self.model).__name__} '
                    f'of this config. {report.wrong}'
                )


@contextlib.contextmanager
def no_logs() -> Iterator[None]:
    """Log nothing but errors for a while."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
