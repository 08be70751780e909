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
    """A loss with a weight of 0 or more; ValueError if it is not."""

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
        """The weighted loss of the given decisions, a scalar."""
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

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        decisions: Sequence[Decision],
        valid_mask: Tensor | None,
    ) -> Tensor:
        """The weighted loss, a scalar.

        Args:
            student, teacher: (B, C, H, W), the sparse backbone's last map, and the dense one's.
            decisions: behind the student's map.
            valid_mask: (B, H·W) bool, False in padding, which does not count; None = none.

        Raises:
            ValueError: if the maps' shapes differ, or ``kept_only`` is asked for where
                the last decision is about a map of another size.
        """
        if self.kept_only:
            last, map_hw = decisions[-1], student.shape[-2:]
            if tuple(last.hw) != tuple(map_hw):
                raise ValueError(
                    f'FeatureDistillLoss(kept_only=True) needs decisions about the map itself, got '
                    f'{tuple(last.hw)} for a map of {tuple(map_hw)}; it is meant for plain ViTs, '
                    'leave kept_only out elsewhere'
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
    """Which pixels of (h, w) logits are labelled, (B, h·w) bool: by the nearest label of each.

    ``shapes`` are (h, w) of each image's own logits in a padded batch, whose padding is not; None =
    no padding.
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
        """The weighted loss of (B, K, H, W) logits; ``mask`` is (B, H·W) bool."""
        return self.loss_weight * logit_distill_loss(student, teacher, mask)
