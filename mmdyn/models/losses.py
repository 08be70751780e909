"""Registers the losses of :mod:`mmdyn.sparsity.losses` for configs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmdyn.registry import MODELS
from mmdyn.sparsity import Decision, keep_ratio_loss


@MODELS.register_module()
class KeepRatioLoss(nn.Module):
    """Weighted :func:`mmdyn.sparsity.keep_ratio_loss`.

    Args:
        loss_weight: factor on the loss; the paper's is 10.
    """

    def __init__(self, loss_weight: float = 10.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, decisions: Sequence[Decision]) -> Tensor:
        """Return the weighted loss of the given decisions, a scalar."""
        return self.loss_weight * keep_ratio_loss(decisions)
