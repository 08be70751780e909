"""Checks that a checkpoint fits the model; mmengine only logs mismatches."""

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
    """Refuses a checkpoint that does not fit the model.

    Args:
        runner: with the model built. A FlexibleRunner's checkpoint is not checked, since its
            strategy may have sharded the parameters.
        whole: whether every parameter must be there, as for testing. For training one is enough,
            but if any dense parameter of a sparse backbone is there, all must be. Predictors and
            fast paths may be missing in modules that keep everything.
        any_ratio: whether ratios change later, so that these must be there too.

    Raises:
        ValueError: during the run, if the weights don't fit, or the checkpoint can't be resumed.
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
                f'{path} has weights but no training state, so it cannot be resumed: start from '
                'it, with --cfg-options load_from=PATH instead of --resume'
            )
        own = isinstance(checkpoint.get('state_dict'), Mapping)
        if not own and isinstance(checkpoint.get('model'), Mapping):
            checkpoint['state_dict'] = checkpoint['model']  # the only key mmengine reads
        elif not own:  # a bare state dict; EMAHook reads the key
            bare = copy.copy(checkpoint)  # with the versions of modules
            checkpoint.clear()
            checkpoint['state_dict'] = bare
        backbone = getattr(self.model, 'backbone', None)
        if isinstance(runner, FlexibleRunner):  # its parameters may be sharded
            return
        # Loaded again by mmengine, with logs. The copy keeps the attribute of the state dict with
        # module versions.
        state = copy.copy(checkpoint.get('state_dict', checkpoint))
        for key in [key for key in state if key.startswith('module.')]:
            state[key.removeprefix('module.')] = state.pop(key)
        with no_logs():
            report = load_weights(self.model, state, path, shapes_may_differ=True)
        if self.whole:
            report.check_in_use(self.model, self.any_ratio)
        elif isinstance(backbone, DynamicBackbone):
            # Training may start without a backbone (filled by init_cfg), but not with part of one.
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
    """Suppress log messages below ERROR."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
