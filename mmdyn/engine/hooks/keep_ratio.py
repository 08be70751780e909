"""KeepRatioHook: from dense to sparse in the course of a training."""

from mmengine.hooks import Hook

from mmdyn.engine.hooks.backbone import (
    check_iteration,
    sparse_backbone,
    warn_unless_reached,
)
from mmdyn.registry import HOOKS


@HOOKS.register_module()
class KeepRatioHook(Hook):
    """Lowers the keep ratios linearly from 1 to those of the config.

    Validation always uses the config's. Follows the iteration number, so a resumed training
    has the ratios it would have had.

    Args:
        end: The iteration, counted from 0, from which the config's ratios hold.
        begin: The iteration up to which everything is kept.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If ``begin`` is negative or not below ``end``.
    """

    def __init__(self, end: int, begin: int = 0) -> None:
        self.begin = check_iteration('begin', begin)
        self.end = check_iteration('end', end, lowest=self.begin + 1)

    def before_train(self, runner) -> None:
        """Notes the ratios to arrive at.

        Args:
            runner: The runner.

        Raises:
            TypeError: If the model's backbone is not one of mmdyn's.
        """
        self._backbone = sparse_backbone(runner, self)
        warn_unless_reached(runner, self, 'end', self.end)
        self._target = self._backbone.keep_ratios

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Sets the ratios of the iteration.

        Args:
            runner: The runner.
            batch_idx: The position of the batch.
            data_batch: The batch.
        """
        left = min(1.0, max(0.0, (self.end - runner.iter) / (self.end - self.begin)))
        self._backbone.set_keep_ratios([r + left * (1.0 - r) for r in self._target])

    def before_val(self, runner) -> None:
        """Sets the ratios to arrive at.

        Args:
            runner: The runner.
        """
        if hasattr(self, '_target'):
            self._backbone.set_keep_ratios(self._target)

    def after_train(self, runner) -> None:
        """Sets the ratios to arrive at, however far the training came.

        Args:
            runner: The runner.
        """
        self._backbone.set_keep_ratios(self._target)
