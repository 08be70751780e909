"""Losses on decisions (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdyn.sparsity.decision import Decision


def keep_ratio_loss(decisions: Sequence[Decision]) -> Tensor:
    """Mean over predictors of the mean over images of (kept fraction - ratio)².

    Only real locations count. The gradient reaches the predictors through the
    decisions' straight-through masks.

    Args:
        decisions: one per predictor, at least one.

    Returns:
        A scalar.

    Raises:
        ValueError: if there are no decisions.
    """
    if not decisions:
        raise ValueError('keep_ratio_loss needs at least one decision, got none')
    errors = [(d.kept_fraction().float() - d.keep_ratio).square().mean() for d in decisions]
    return torch.stack(errors).mean()
