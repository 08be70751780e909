"""Losses of sparse training: keep ratio and distillation (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdyn.sparsity.decision import Decision


def keep_ratio_loss(decisions: Sequence[Decision]) -> Tensor:
    """Mean over predictors of the mean over images of (kept fraction - ratio)².

    Only real locations count. Gradients reach the predictors through the straight-through masks.

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


def feature_distill_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error between the feature maps of student and dense teacher.

    Args:
        student: (B, C, H, W) normalised map.
        teacher: the teacher's map of the same images.
        mask: (B, H·W) bool, the locations that count; None = all.

    Returns:
        A scalar in float32; 0 if no location counts.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape('feature_distill_loss', student, teacher)
    error = (student.float() - teacher.float()).square().mean(dim=1).flatten(1)
    return _mean_where(error, mask)


def logit_distill_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over pixels of KL(teacher ‖ student) of the class distributions.

    Like :func:`feature_distill_loss`, for (B, K, H, W) logits of K classes.
    """
    _check_same_shape('logit_distill_loss', student, teacher)
    ours = student.float().log_softmax(dim=1)
    theirs = teacher.float().log_softmax(dim=1)
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=1).flatten(1)
    return _mean_where(divergence, mask)


def _mean_where(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, N) values where a (B, N) mask is True; 0 for an empty mask."""
    if mask is None:
        return values.mean()
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def _check_same_shape(loss: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f'{loss} got a student of shape {tuple(student.shape)} and a teacher of shape '
            f'{tuple(teacher.shape)}: use a teacher of the same width, or remove this loss'
        )
