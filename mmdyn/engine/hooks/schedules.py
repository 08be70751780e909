"""Hooks that change decisions by iteration number, so resumed trainings are identical.

They import from ``mmdyn.models`` when called, as the tools import this package before they know
the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook

from mmdyn.checks import check_integer
from mmdyn.engine.wrappers import unwrapped
from mmdyn.registry import HOOKS


@HOOKS.register_module()
class KeepRatioHook(Hook):
    """Lowers the keep ratios linearly from 1 to those of the config.

    Validation always uses the config's.

    Args:
        end: first iteration (from 0) with the config's ratios.
        begin: last iteration with ratios of 1.

    Raises:
        TypeError: if one is not an integer; before training, if the backbone is not one of mmdyn's.
        ValueError: if ``begin`` is negative or not below ``end``.
    """

    def __init__(self, end: int, begin: int = 0) -> None:
        self.begin = check_integer('begin', begin, 0)
        self.end = check_integer('end', end, self.begin + 1)

    def before_train(self, runner) -> None:
        """Store the config's ratios."""
        self._backbone = sparse_backbone(runner, self)
        _warn_unless_reached(runner, self, 'end', self.end)
        self._target = self._backbone.keep_ratios

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the ratios of the iteration."""
        left = min(1.0, max(0.0, (self.end - runner.iter) / (self.end - self.begin)))
        self._backbone.set_keep_ratios([r + left * (1.0 - r) for r in self._target])

    def before_val(self, runner) -> None:
        """Set the config's ratios."""
        if hasattr(self, '_target'):
            self._backbone.set_keep_ratios(self._target)

    def after_train(self, runner) -> None:
        """Set the config's ratios, even if training stopped early."""
        self._backbone.set_keep_ratios(self._target)


@HOOKS.register_module()
class TrainingPolicyHook(Hook):
    """Changes the policy of a model during training.

    Gumbel samples explore, but at the rates of a short fine-tuning they stay close to random
    selection, and both paths learn to serve every location. A final phase with ``TopKPolicy``
    trains the deployed function: each path on the locations it gets.

    Args:
        phases: ``dict(begin=ITERATION, policy=POLICY)`` each, by increasing ``begin``, from 0; the
            policy is a config such as ``dict(type='mmdyn.TopKPolicy')``. Before the first
            ``begin`` the default (Gumbel) applies.

    Raises:
        TypeError: if a phase is not such a dict; before training, if the model makes no decisions.
        ValueError: if there are no phases, or ``begin`` is negative or does not increase.
    """

    def __init__(self, phases: Sequence[dict]) -> None:
        from mmdyn.models.policies import build_policy

        phases = list(phases)
        if not phases:
            raise ValueError(
                'TrainingPolicyHook has no phases; give dict(begin=ITERATION, policy=POLICY)'
            )
        for phase in phases:
            if not isinstance(phase, dict) or set(phase) != {'begin', 'policy'}:
                raise TypeError(f'a phase is dict(begin=ITERATION, policy=POLICY), got {phase!r}')
            check_integer('begin', phase['begin'], 0)
        begins = [phase['begin'] for phase in phases]
        if any(b <= a for a, b in itertools.pairwise(begins)):
            raise ValueError(f'begin must increase from phase to phase, got {begins}')
        self.phases = [(phase['begin'], build_policy(phase['policy'])) for phase in phases]

    def before_train(self, runner) -> None:
        """Find the modules that make decisions."""
        self._parts = parts_of_runner(runner, self)
        self._defaults = [part.training_policy for part in self._parts]
        for begin, _ in self.phases:
            _warn_unless_reached(runner, self, 'begin', begin)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the policy of the iteration."""
        started = [policy for begin, policy in self.phases if begin <= runner.iter]
        if started and any(part.training_policy is not started[-1] for part in self._parts):
            for part in self._parts:
                part.training_policy = started[-1]
            runner.logger.info(f'decisions are now made by {type(started[-1]).__name__}')

    def after_train(self, runner) -> None:
        """Restore the default policies."""
        for part, default in zip(self._parts, self._defaults, strict=True):
            part.training_policy = default


@HOOKS.register_module()
class HoldPretrainedHook(Hook):
    """Freezes pretrained parameters at rate 0 while predictors and fast paths warm up.

    The rate is 0 during the step only: schedules, checkpoints and the log see the actual rate.
    (Parameters without requires_grad would never enter the optimizer.) Pretrained batch norms use
    their running statistics meanwhile, without updating them.

    Args:
        end: first iteration (from 0) in which everything learns.

    Raises:
        TypeError: if ``end`` is not an integer; before training, if the model makes no decisions.
        ValueError: if ``end`` is below 1; before training, if a group of the optimizer mixes
            pretrained and new parameters.
    """

    # Before ParamSchedulerHook (LOW), which starts from the current rates.
    priority = 'NORMAL'

    def __init__(self, end: int) -> None:
        self.end = check_integer('end', end)

    def before_train(self, runner) -> None:
        """Find the optimizer's groups of pretrained parameters and pretrained batch norms."""
        from mmdyn.converters.additions import is_new

        parts_of_runner(runner, self)
        _warn_unless_reached(runner, self, 'end', self.end)
        names = {id(p): name for name, p in runner.model.named_parameters()}
        self._held = []
        self._norms = [
            module
            for name, module in runner.model.named_modules()
            if hasattr(module, 'running_mean') and not is_new(f'{name}.')
        ]
        for group in runner.optim_wrapper.optimizer.param_groups:
            new = {is_new(names[id(p)]) for p in group['params']}
            if len(new) > 1:
                raise ValueError(
                    'HoldPretrainedHook found pretrained and new parameters in one group of the '
                    'optimizer: set optim_wrapper.constructor to '
                    "'mmdyn.FinetuneOptimWrapperConstructor' and part_lr_mult in its "
                    'paramwise_cfg'
                )
            if new == {False}:
                self._held.append(group)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the rate to 0 for the step, and stop updates of running statistics."""
        holding = runner.iter < self.end
        self._rates = [(group, group['lr']) for group in self._held if holding]
        for group, _ in self._rates:
            group['lr'] = 0.0
        self._stopped = [norm for norm in self._norms if norm.training and holding]
        for norm in self._stopped:
            norm.eval()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Restore the settings changed for the step."""
        for group, rate in self._rates:
            group['lr'] = rate
        for norm in self._stopped:
            norm.train()


def sparse_backbone(runner: Any, hook: Hook) -> Any:
    """The sparse backbone of a runner's model.

    Raises:
        TypeError: naming ``hook``, if the model's backbone is not one of mmdyn's.
    """
    from mmdyn.models.backbones.base import DynamicBackbone

    backbone = unwrapped(getattr(unwrapped(runner.model), 'backbone', None))
    if not isinstance(backbone, DynamicBackbone):
        raise TypeError(
            f'{type(hook).__name__} needs a sparse backbone such as mmdyn.DynamicSwin, got '
            f'{type(backbone).__name__}; remove the hook from custom_hooks'
        )
    return backbone


def parts_of_runner(runner: Any, hook: Hook) -> list[Any]:
    """Modules of a runner's model that make decisions: sparse backbone, neck, decode head.

    Raises:
        TypeError: naming ``hook``, if there is none.
    """
    from mmdyn.models.deciding import Deciding

    model = unwrapped(runner.model)
    parts = [unwrapped(getattr(model, part, None)) for part in ('backbone', 'neck', 'decode_head')]
    deciding = [part for part in parts if isinstance(part, Deciding)]
    return deciding or [sparse_backbone(runner, hook)]  # which raises


def _warn_unless_reached(runner: Any, hook: Hook, name: str, iteration: int) -> None:
    """Warn if training ends before an iteration that a hook waits for."""
    if iteration >= runner.max_iters:
        runner.logger.warning(
            f'{type(hook).__name__}: {name}={iteration} is never reached in {runner.max_iters} '
            f'iterations; change {name} along with max_iters'
        )
