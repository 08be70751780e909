"""FitFastPathsHook: fast paths that start close to the slow ones."""

from __future__ import annotations

import copy
import itertools

from mmengine.hooks import Hook

from mmdyn.checks import check_integer
from mmdyn.engine.hooks.schedules import sparse_backbone
from mmdyn.engine.wrappers import unwrapped
from mmdyn.registry import HOOKS


@HOOKS.register_module()
class FitFastPathsHook(Hook):
    """Fits the fast paths to the slow ones before a fine-tuning; see ``fit_fast_paths``.

    Does nothing when a training is resumed.

    Args:
        batches: of the training data to fit on.

    Raises:
        TypeError: if ``batches`` is not an integer; before training, if the backbone is not a
            DynamicSwin or DynamicConvNeXt.
        ValueError: if ``batches`` is below 1.
    """

    def __init__(self, batches: int = 16) -> None:
        self.batches = check_integer('batches', batches)

    def before_train(self, runner) -> None:
        """Fit and log the shares that the fast paths explain."""
        from mmdyn.models.fitting import fit_fast_paths

        backbone = sparse_backbone(runner, self)
        if runner.iter > 0:
            return
        preprocess = unwrapped(runner.model).data_preprocessor
        # A loader of its own: training draws its images in the same order as without this hook.
        loader = runner.build_dataloader(copy.deepcopy(runner.cfg.train_dataloader), runner.seed)
        data = itertools.islice(loader, self.batches)
        images = (preprocess(batch, True)['inputs'] for batch in data)
        shares = fit_fast_paths(backbone, images)
        text = ', '.join(f'{share:.0%}' for share in shares)
        runner.logger.info(f'fast paths explain of the slow updates, block by block: {text}')
