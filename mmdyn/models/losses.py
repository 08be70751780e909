"""Registers the losses of ``mmdyn.sparsity`` for configs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.registry import MODELS
from mmdyn.sparsity import Decision, feature_distill_loss, keep_ratio_loss, logit_distill_loss


class _Weighted(nn.Module):
    """A loss with a weight.

    Args:
        loss_weight: factor on the loss, 0 or more.

    Raises:
        ValueError: if ``loss_weight`` is negative.
    """

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
        loss_weight: factor on the loss; the original's is 10, for its DeiT-S 2, for its DeiT-B 5.
    """

    def __init__(self, loss_weight: float = 10.0) -> None:
        super().__init__(loss_weight)

    def forward(self, decisions: Sequence[Decision]) -> Tensor:
        """Return the weighted loss of the given decisions, a scalar."""
        return self.loss_weight * keep_ratio_loss(decisions)


@MODELS.register_module()
class FeatureDistillLoss(_Weighted):
    """Weighted :func:`mmdyn.sparsity.feature_distill_loss` on the backbone's last map.

    Args:
        loss_weight: factor on the loss; the original's is 0.5.
        kept_only: whether only locations that the last decision kept count, as in the
            original's plain ViT. Its map and the decision's must be of one size.
        normalize: whether to normalise both maps over their channels first, for a backbone
            that does not normalise its last map itself (``DynamicViT`` by default).
    """

    def __init__(
        self, loss_weight: float = 0.5, kept_only: bool = False, normalize: bool = False
    ) -> None:
        super().__init__(loss_weight)
        self.kept_only = kept_only
        self.normalize = normalize

    def forward(self, student: Tensor, teacher: Tensor, decisions: Sequence[Decision]) -> Tensor:
        """Return the weighted loss, a scalar; a batch's padding does not count.

        Args:
            student: (B, C, H, W), the sparse backbone's last map.
            teacher: (B, C, H, W), the dense teacher's.
            decisions: behind the student's map.

        Raises:
            ValueError: if the maps' shapes differ, or ``kept_only`` is asked for where
                the last decision is about a map of another size.
        """
        last, map_hw = decisions[-1], student.shape[-2:]
        mask = last.valid_mask
        if self.kept_only:
            if tuple(last.hw) != tuple(map_hw):
                raise ValueError(
                    f'FeatureDistillLoss(kept_only=True) needs decisions about the map itself, got '
                    f'{tuple(last.hw)} for a map of {tuple(map_hw)}; it is meant for plain ViTs, '
                    'leave kept_only out elsewhere'
                )
            mask = last.keep_mask.detach() > 0
        elif mask is not None:
            mask = _resized(mask.unflatten(1, tuple(last.hw)), map_hw).flatten(1)
        if self.normalize:
            student, teacher = _normalised(student), _normalised(teacher)
        return self.loss_weight * feature_distill_loss(student, teacher, mask)


def known_pixels(data_samples: Sequence[Any], size: Sequence[int], ignore_index: int) -> Tensor:
    """Which pixels of logits are labelled: the nearest label at the logits' own resolution.

    Args:
        data_samples: mmseg's, with ``gt_sem_seg``.
        size: (h, w) of the logits.
        ignore_index: label of what is not.

    Returns:
        (B, h·w) bool.
    """
    labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
    labels = F.interpolate(labels.float(), size=tuple(size), mode='nearest')
    return labels.flatten(1) != ignore_index


def _resized(mask: Tensor, map_hw: Sequence[int]) -> Tensor:
    """Real locations (B, H, W) of one map on a map of another stride.

    Padding lies at the right and the bottom, so a location of a coarser map is real if its
    first one of the finer map is.
    """
    for dim, size in zip((1, 2), map_hw, strict=True):
        locations = mask.shape[dim]
        index = torch.arange(size, device=mask.device)
        # Downsampling may round the size up (Swin) or down (ConvNeXt).
        step = math.floor(locations / size + 0.5)
        index = index * step if size < locations else index * locations // size
        mask = mask.index_select(dim, index.clamp(max=locations - 1))
    return mask


def _normalised(x: Tensor) -> Tensor:
    """(B, C, H, W) with mean 0 and variance 1 over the channels of each location."""
    return F.layer_norm(x.movedim(1, -1).float(), x.shape[1:2]).movedim(-1, 1)


@MODELS.register_module()
class LogitDistillLoss(_Weighted):
    """Weighted :func:`mmdyn.sparsity.logit_distill_loss`.

    Args:
        loss_weight: factor on the loss; the original's is 0.5.
    """

    def __init__(self, loss_weight: float = 0.5) -> None:
        super().__init__(loss_weight)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weighted loss of (B, K, H, W) logits; ``mask`` is (B, H·W) bool."""
        return self.loss_weight * logit_distill_loss(student, teacher, mask)
