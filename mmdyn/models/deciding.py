"""What the parts of a model that decide have in common: a backbone, a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdyn.models.policies import build_policy
from mmdyn.sparsity import Policy

EXECUTIONS = ('auto', 'masked', 'gathered')


def how_to_run(part: Any, policy: Policy | dict | None, execution: str) -> tuple[Policy, str]:
    """Settle what was left open: by whether the part is training.

    Args:
        part: a module with ``training_policy`` and ``policy``.
        policy: how scores become decisions; None = ``training_policy`` while training,
            ``policy`` otherwise.
        execution: ``'masked'``, ``'gathered'``, or ``'auto'``: masked while training, else
            gathered.

    Returns:
        The policy, and ``'masked'`` or ``'gathered'``.

    Raises:
        ValueError: on an unknown execution.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f'execution must be one of {EXECUTIONS}, got {execution!r}')
    training = part.training
    if policy is None:
        policy = part.training_policy if training else part.policy
    if execution == 'auto':
        execution = 'masked' if training else 'gathered'
    return build_policy(policy), execution


def check_scores(log_probs: Tensor, predictor: str) -> None:
    """Refuse scores that are not numbers.

    Args:
        log_probs: what the predictor returned.
        predictor: its name, for the message.

    Raises:
        ValueError: if one is NaN or infinite.
    """
    # A meta tensor holds no values.
    if not log_probs.is_meta and not torch.isfinite(log_probs).all():
        raise ValueError(
            f'{predictor} gave NaN or infinite scores: its input or its weights hold NaN or '
            'infinite values; check the images, the learning rate and the loss scale'
        )


def check_tile_ratio(ratio: float) -> float:
    """Return the ratio as a float, or say what is wrong with it.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is outside [0, 1].
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f'tile_ratio must be a number, got {ratio!r}')
    if not 0 <= ratio <= 1:
        raise ValueError(f'tile_ratio must lie in [0, 1], got {ratio}')
    return float(ratio)


def tile_part(model: nn.Module) -> Any | None:
    """The part of a host's model that chooses tiles, if one does: the decode head or the neck.

    It has ``tile_ratio``, ``set_tile_ratio``, ``highest_ratio`` and ``policy``.
    """
    parts = (getattr(model, name, None) for name in ('decode_head', 'neck'))
    return next((part for part in parts if hasattr(part, 'set_tile_ratio')), None)
