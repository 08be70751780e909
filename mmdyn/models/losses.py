"""Registers the losses of ``mmdyn.sparsity`` for configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.registry import MODELS
from mmdyn.sparsity import Decision, feature_distill_loss, keep_ratio_loss, logit_distill_loss


class _Weighted(nn.Module):
    """A loss with a non-negative weight (else ValueError)."""

    def __init__(self, loss_weight: float) -> None:
        super().__init__()
        if not loss_weight >= 0:
            raise ValueError(
                f'{type(self).__name__} needs a loss_weight of 0 or more, got {loss_weight}'
            )
        self.loss_weight = loss_weight


@MODELS.register_module()
class KeepRatioLoss(_Weighted):
    """Weighted :func:`mmdyn.sparsity.keep_ratio_loss`.

    Args:
        loss_weight: the original uses 10, for DeiT-S 2, for DeiT-B 5.
    """

    def __init__(self, loss_weight: float = 10.0) -> None:
        super().__init__(loss_weight)

    def forward(self, decisions: Sequence[Decision]) -> Tensor:
        """Return the weighted loss, a scalar."""
        return self.loss_weight * keep_ratio_loss(decisions)


@MODELS.register_module()
class FeatureDistillLoss(_Weighted):
    """Weighted :func:`mmdyn.sparsity.feature_distill_loss` on the backbone's last map.

    Args:
        loss_weight: the original uses 0.5.
        kept_only: whether only locations kept by the last decision count, as in the original's
            plain ViT. Map and decision must have the same size.
        normalize: whether to normalise both maps over channels first, for a backbone without an
            output norm (``DynamicViT`` by default).
    """

    def __init__(
        self, loss_weight: float = 0.5, kept_only: bool = False, normalize: bool = False
    ) -> None:
        super().__init__(loss_weight)
        self.kept_only = kept_only
        self.normalize = normalize

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        decisions: Sequence[Decision],
        valid_mask: Tensor | None,
    ) -> Tensor:
        """Return the weighted loss, a scalar.

        Args:
            student, teacher: (B, C, H, W), last map of the sparse and of the dense backbone.
            decisions: of the student.
            valid_mask: (B, H·W) bool, False in padding, which is ignored; None = no padding.

        Raises:
            ValueError: if the shapes differ, or with ``kept_only`` the last decision's size differs
                from the map's.
        """
        if self.kept_only:
            last, map_hw = decisions[-1], student.shape[-2:]
            if tuple(last.hw) != tuple(map_hw):
                raise ValueError(
                    f'FeatureDistillLoss(kept_only=True) needs decisions on the map itself, got '
                    f'{tuple(last.hw)} for a map of {tuple(map_hw)}; it is for plain ViTs, '
                    'remove kept_only elsewhere'
                )
            valid_mask = last.keep_mask.detach() > 0
        if self.normalize:
            student, teacher = _normalised(student), _normalised(teacher)
        return self.loss_weight * feature_distill_loss(student, teacher, valid_mask)


def known_pixels(
    data_samples: Sequence[Any],
    size: Sequence[int],
    ignore_index: int,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Mark the labelled pixels of (h, w) logits, by nearest label: (B, h·w) bool.

    ``shapes``: unpadded (h, w) of each image's logits; padding is unlabelled. None = no padding.
    """
    known = []
    for i, sample in enumerate(data_samples):
        labels, own = sample.gt_sem_seg.data, tuple(size)
        if shapes is not None:
            height, width = sample.img_shape[:2]
            labels, own = labels[..., :height, :width], shapes[i]
        labels = F.interpolate(labels[None].float(), size=own, mode='nearest')[0, 0]
        outside = (0, size[1] - own[1], 0, size[0] - own[0])
        known.append(F.pad(labels != ignore_index, outside))
    return torch.stack(known).flatten(1)


def _normalised(x: Tensor) -> Tensor:
    """Normalise (B, C, H, W) to mean 0 and variance 1 over channels."""
    return F.layer_norm(x.movedim(1, -1).float(), x.shape[1:2]).movedim(-1, 1)


@MODELS.register_module()
class LogitDistillLoss(_Weighted):
    """Weighted :func:`mmdyn.sparsity.logit_distill_loss`.

    Args:
        loss_weight: the original uses 0.5.
    """

    def __init__(self, loss_weight: float = 0.5) -> None:
        super().__init__(loss_weight)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weighted loss of (B, K, H, W) logits; ``mask`` is (B, H·W) bool."""
        return self.loss_weight * logit_distill_loss(student, teacher, mask)
