"""Shared by backbones, heads and necks that make decisions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmdyn.models.policies import build_policy
from mmdyn.sparsity import GumbelPolicy, Policy, TopKPolicy
from mmdyn.sparsity.compiling import is_recorded, is_traced
from mmdyn.sparsity.routing import Execution


class Deciding:
    """Mixin of modules that make decisions: a backbone, a head or a neck.

    Attributes:
        policy: in evaluation.
        training_policy: in training.
    """

    training: bool
    policy: Policy
    training_policy: Policy

    def set_policies(self, policy: Policy | dict | None) -> None:
        """Set the evaluation policy (instance or config, None = top-k); training uses Gumbel."""
        self.policy = TopKPolicy() if policy is None else build_policy(policy)
        self.training_policy = GumbelPolicy()

    @property
    def lowest_ratio(self) -> float:
        """The smallest keep ratio of all decisions; 1 = everything is kept."""
        raise NotImplementedError

    def keep_everything(self) -> None:
        """Set all ratios to their maximum, which makes this module the dense one."""
        raise NotImplementedError

    def how_to_run(self, policy: Policy | dict | None, execution: str) -> tuple[Policy, Execution]:
        """Resolve default policy and execution by the mode of this module.

        ``policy=None`` means ``training_policy`` or ``policy``; ``'auto'`` means masked or
        gathered.

        Raises:
            ValueError: on an unknown execution.
        """
        if execution not in ('auto', 'masked', 'gathered'):
            raise ValueError(f"execution must be 'auto', 'masked' or 'gathered', got {execution!r}")
        if policy is None:
            policy = self.training_policy if self.training else self.policy
        if execution == 'auto':
            execution = 'masked' if self.training else 'gathered'
        return build_policy(policy), execution


def check_scores(log_probs: Tensor, predictor: str) -> None:
    """Refuse NaN and infinite scores, naming the predictor.

    Raises ValueError on a CPU and RuntimeError in a traced graph. On a GPU it is an asynchronous
    assertion: a later call raises a CUDA error, CUDA prints the predictor's name, and the process
    can't use the GPU any more.
    """
    if log_probs.is_meta or is_recorded():
        return
    message = (
        f'{predictor} gave NaN or infinite scores: its input or its weights hold NaN or '
        'infinite values; check the images, the learning rate and the loss scale'
    )
    # The minimum is NaN if any score is; log-probabilities are never above 0.
    lowest = log_probs.detach().min()
    if log_probs.device.type != 'cpu' or is_traced(log_probs):
        torch._assert_async(lowest > float('-inf'), message)
    elif not math.isfinite(lowest.item()):
        raise ValueError(message)


def check_tile_ratio(ratio: float) -> float:
    """Validate a fraction of tiles and return it (TypeError, ValueError)."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f'tile_ratio must be a number, got {ratio!r}')
    if not 0 <= ratio <= 1:
        raise ValueError(f'tile_ratio must lie in [0, 1], got {ratio}')
    return float(ratio)


def deciding_parts(
    model: nn.Module, names: Iterable[str] = ('backbone', 'decode_head', 'neck')
) -> list[Any]:
    """Those of the named children of a host's model that make decisions."""
    parts = (getattr(model, name, None) for name in names)
    return [part for part in parts if isinstance(part, Deciding)]


def tile_part(model: nn.Module) -> Any | None:
    """Decode head or neck of a host's model that chooses tiles, if any.

    It has ``tile_ratio``, ``set_tile_ratio``, ``highest_ratio`` and ``policy``.
    """
    return next(iter(deciding_parts(model, ('decode_head', 'neck'))), None)


def keep_everything(model: nn.Module) -> nn.Module:
    """Set every ratio in a model to its maximum with top-k policies; return the model."""
    for part in model.modules():
        if isinstance(part, Deciding):
            part.keep_everything()
            part.policy = TopKPolicy()
    return model
