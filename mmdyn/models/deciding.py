"""What backbones, heads and necks that make decisions have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdyn.models.new_parameters import is_new
from mmdyn.models.policies import build_policy
from mmdyn.sparsity import GumbelPolicy, Policy, TopKPolicy
from mmdyn.sparsity.compiling import is_compiling
from mmdyn.sparsity.routing import Execution

KEEP_EVERYTHING = (
    '--keep-ratio 1, --cfg-options model.decode_head.tile_ratio=1 for a head that chooses tiles, '
    'the stock neck and rpn_head in place of those that do'
)
"""How a user has a model keep everything."""


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
    """Raise ValueError, with the predictor's name, if a score is NaN or infinite."""
    # A meta tensor holds no values; a graph that is traced can't stop at some.
    if log_probs.is_meta or is_compiling():
        return
    if not torch.isfinite(log_probs).all():
        raise ValueError(
            f'{predictor} gave NaN or infinite scores: its input or its weights hold NaN or '
            'infinite values; check the images, the learning rate and the loss scale'
        )


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


def lacking(model: nn.Module, state: Mapping[str, Tensor], missing: Iterable[str]) -> list[str]:
    """Names of the parameters that a state dict has not given a model.

    ``missing`` is what ``load_state_dict`` returned, without the fast paths that the model made of
    a dense layer.
    """
    missing = set(missing)
    names = (name for name, _ in model.named_parameters())
    return [k for k in names if k in missing or (is_new(k) and k not in state)]


def missing_in_use(model: nn.Module, missing: Iterable[str]) -> tuple[list[str], list[str]]:
    """Which of the parameters that a checkpoint lacks a model predicts with, as its ratios are set.

    Returns:
        Those of the dense model, without auxiliary heads, which help a training only; and
        those of predictors and fast paths, without parts that keep everything.
    """
    ratios = {
        f'{name}.': part.lowest_ratio
        for name, part in model.named_modules()
        if isinstance(part, Deciding)
    }
    # What belongs to no such part follows another one's tiles.
    idle = tuple(name for name, ratio in ratios.items() if ratio == 1)
    unused = ('',) if len(idle) == len(ratios) else idle
    missing = list(missing)
    dense = [k for k in missing if not (is_new(k) or k.startswith('auxiliary_head.'))]
    return dense, [k for k in missing if is_new(k) and not k.startswith(unused)]
