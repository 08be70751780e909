"""What backbones, heads and necks that make decisions have in common."""

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
    """Mixin of everything that decides: a backbone, a head, a neck.

    Attributes:
        policy: how scores become decisions in evaluation.
        training_policy: while training.
    """

    training: bool
    policy: Policy
    training_policy: Policy

    def set_policies(self, policy: Policy | dict | None) -> None:
        """Set the evaluation policy, an instance or a config (None = top-k); Gumbel in training."""
        self.policy = TopKPolicy() if policy is None else build_policy(policy)
        self.training_policy = GumbelPolicy()

    @property
    def lowest_ratio(self) -> float:
        """The smallest fraction that any decision keeps; 1 = everything."""
        raise NotImplementedError

    def keep_everything(self) -> None:
        """Set the ratios to the highest there are: this part is the dense one then."""
        raise NotImplementedError

    def how_to_run(self, policy: Policy | dict | None, execution: str) -> tuple[Policy, Execution]:
        """Resolve the defaults by whether this part is training.

        No policy means ``training_policy`` or ``policy``; the execution ``'auto'`` means masked or
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
    """Refuse NaN and infinite scores, with the predictor's name.

    On a CPU by a ValueError at once, in a traced graph by a RuntimeError. On a GPU by an
    asynchronous assertion: a later call raises CUDA's error, the predictor's name is in what CUDA
    prints, and the process can't use the GPU any more.
    """
    if log_probs.is_meta or is_recorded():
        return
    message = (
        f'{predictor} gave NaN or infinite scores: its input or its weights hold NaN or '
        'infinite values; check the images, the learning rate and the loss scale'
    )
    # NaN if one is; log-probabilities are never above 0.
    lowest = log_probs.detach().min()
    if log_probs.device.type != 'cpu' or is_traced(log_probs):
        torch._assert_async(lowest > float('-inf'), message)
    elif not math.isfinite(lowest.item()):
        raise ValueError(message)


def check_tile_ratio(ratio: float) -> float:
    """Validate a fraction of tiles and return it; TypeError if no number, ValueError if outside."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f'tile_ratio must be a number, got {ratio!r}')
    if not 0 <= ratio <= 1:
        raise ValueError(f'tile_ratio must lie in [0, 1], got {ratio}')
    return float(ratio)


def deciding_parts(
    model: nn.Module, names: Iterable[str] = ('backbone', 'decode_head', 'neck')
) -> list[Any]:
    """Those parts of a host's model, of the named ones, that decide."""
    parts = (getattr(model, name, None) for name in names)
    return [part for part in parts if isinstance(part, Deciding)]


def tile_part(model: nn.Module) -> Any | None:
    """The part of a host's model that chooses tiles, if one does: the decode head or the neck.

    It has ``tile_ratio``, ``set_tile_ratio``, ``highest_ratio`` and ``policy``.
    """
    return next(iter(deciding_parts(model, ('decode_head', 'neck'))), None)


def keep_everything(model: nn.Module) -> nn.Module:
    """Set every ratio in a model to its highest, chosen by top-k; return the model."""
    for part in model.modules():
        if isinstance(part, Deciding):
            part.keep_everything()
            part.policy = TopKPolicy()
    return model
