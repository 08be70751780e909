"""HoldPretrainedHook: new parameters learn alone for a while."""

from typing import Any

from mmengine.hooks import Hook

from mmdyn.converters.additions import is_new
from mmdyn.engine.hooks.backbone import (
    check_iteration,
    deciding_parts,
    warn_unless_reached,
)
from mmdyn.registry import HOOKS


@HOOKS.register_module()
class HoldPretrainedHook(Hook):
    """Holds what a dense model has at rate 0 while predictors and fast paths find their feet.

    The rate is 0 during the step only: schedules, checkpoints and the log see the one that
    counts. (Parameters without requires_grad would never have entered the optimizer.) Batch
    norms then normalise by their running statistics, which stand still too. A resumed training
    is held as it would have been.

    Args:
        end: The iteration, counted from 0, from which everything learns.

    Raises:
        TypeError: If ``end`` is not an integer.
        ValueError: If it is below 1.
    """

    # Before ParamSchedulerHook (LOW), which works on with the rates it finds.
    priority = 'NORMAL'

    def __init__(self, end: int) -> None:
        self.end = check_iteration('end', end, lowest=1)

    def before_train(self, runner) -> None:
        """Finds the groups of pretrained parameters.

        Args:
            runner: The runner.

        Raises:
            TypeError: If no part of the model decides.
            ValueError: If a group of the optimizer mixes pretrained and new parameters.
        """
        deciding_parts(runner, self)
        warn_unless_reached(runner, self, 'end', self.end)
        names = {id(p): name for name, p in runner.model.named_parameters()}
        self._held = []
        self._rates: list[float] = []
        self._norms = [
            module
            for name, module in runner.model.named_modules()
            if hasattr(module, 'running_mean') and not is_new(f'{name}.')
        ]
        self._stopped: list[Any] = []
        for group in runner.optim_wrapper.optimizer.param_groups:
            new = {is_new(names[id(p)]) for p in group['params']}
            if len(new) > 1:
                raise ValueError(
                    'HoldPretrainedHook finds pretrained and new parameters in one group of the '
                    'optimizer: set optim_wrapper.constructor to '
                    "'mmdyn.FinetuneOptimWrapperConstructor' and a part_lr_mult in its "
                    'paramwise_cfg'
                )
            if new == {False}:
                self._held.append(group)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Sets the rate to 0 for the step, and stops running statistics.

        Args:
            runner: The runner.
            batch_idx: The position of the batch.
            data_batch: The batch.
        """
        if runner.iter < self.end:
            self._rates = [group['lr'] for group in self._held]
            for group in self._held:
                group['lr'] = 0.0
            self._stopped = [norm for norm in self._norms if norm.training]
            for norm in self._stopped:
                norm.eval()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Sets back what was set for the step.

        Args:
            runner: The runner.
            batch_idx: The position of the batch.
            data_batch: The batch.
            outputs: The step's.
        """
        for group, rate in zip(self._held, self._rates, strict=False):
            group['lr'] = rate
        for norm in self._stopped:
            norm.train()
        self._rates, self._stopped = [], []
