"""TrainingPolicyHook: other policies at other times of a training."""

import itertools
from collections.abc import Sequence

from mmengine.hooks import Hook

from mmdyn.engine.hooks.backbone import (
    check_iteration,
    deciding_parts,
    warn_unless_reached,
)
from mmdyn.registry import HOOKS


@HOOKS.register_module()
class TrainingPolicyHook(Hook):
    """Changes how a sparse backbone decides while it trains.

    Gumbel samples explore, but at the rates of a short fine-tuning they stay close to a
    random choice, and both paths learn to serve every location. A closing phase with
    ``TopKPolicy`` trains the function that is deployed: each path on the locations it gets.

    Follows the iteration number, so a resumed training decides as it would have.

    Args:
        phases: ``dict(begin=ITERATION, policy=POLICY)`` each, by rising ``begin``, counted
            from 0; the policy is a config such as ``dict(type='mmdyn.TopKPolicy')``. Before
            the first ``begin`` the default (Gumbel) holds.

    Raises:
        TypeError: if a phase is not such a dict.
        ValueError: if there is none, or ``begin`` is negative or does not rise.
    """

    def __init__(self, phases: Sequence[dict]) -> None:
        # Not at the top: the tools import this package before they know which host they need.
        from mmdyn.models.policies import build_policy

        phases = list(phases)
        if not phases:
            raise ValueError(
                'TrainingPolicyHook has no phases; give dict(begin=ITERATION, policy=POLICY)'
            )
        for phase in phases:
            if not isinstance(phase, dict) or set(phase) != {'begin', 'policy'}:
                raise TypeError(f'a phase is dict(begin=ITERATION, policy=POLICY), got {phase!r}')
            check_iteration('begin', phase['begin'])
        begins = [phase['begin'] for phase in phases]
        if any(b <= a for a, b in itertools.pairwise(begins)):
            raise ValueError(f'begin must rise from phase to phase, from 0 on, got {begins}')
        self.phases = [(phase['begin'], build_policy(phase['policy'])) for phase in phases]

    def before_train(self, runner) -> None:
        """Finds what decides, and warns of phases that never begin.

        Args:
            runner: The runner.

        Raises:
            TypeError: If no part of the model decides.
        """
        self._parts = deciding_parts(runner, self)
        self._defaults = [part.training_policy for part in self._parts]
        for begin, _ in self.phases:
            warn_unless_reached(runner, self, 'begin', begin)

    def after_train(self, runner) -> None:
        """Gives each part its default back.

        Args:
            runner: The runner.
        """
        for part, default in zip(self._parts, self._defaults, strict=True):
            part.training_policy = default

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Sets the policy of the iteration.

        Args:
            runner: The runner.
            batch_idx: The position of the batch.
            data_batch: The batch.
        """
        started = [policy for begin, policy in self.phases if begin <= runner.iter]
        if started and any(part.training_policy is not started[-1] for part in self._parts):
            for part in self._parts:
                part.training_policy = started[-1]
            runner.logger.info(f'decisions are made by {type(started[-1]).__name__} from now on')
