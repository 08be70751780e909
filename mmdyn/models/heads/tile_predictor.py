"""Scores the tiles of a map by how much they need full resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.sparsity import ScorePredictor
from mmdyn.sparsity.compiling import fixed


def uncertainty(logits: Tensor) -> Tensor:
    """Uncertainty of (B, K, H, W) logits: 1 - (first - second probability), (B, H, W) in [0, 1].

    A single channel is the logit of a binary class.
    """
    if fixed(logits.shape[1]) == (1,):
        return 1 - (2 * logits[:, 0].sigmoid() - 1).abs()
    best = logits.float().softmax(dim=1).topk(2, dim=1).values
    return 1 - (best[:, 0] - best[:, 1])


class TilePredictor(nn.Module):
    """Log-probabilities of (keep, drop) for every tile.

    A :class:`ScorePredictor` on the tiles' mean features, plus the standardised uncertainty of the
    coarse prediction times a learned factor, initially 1: an untrained predictor prefers uncertain
    tiles.

    Args:
        channels: C of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scores = ScorePredictor(channels)
        self.uncertainty_weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, doubt: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score the tiles.

        Args:
            x: (B, T, C) mean features.
            doubt: (B, T) mean :func:`uncertainty`.
            mask: (B, T) bool, tiles with real content; None = all.

        Returns:
            (B, T, 2) float32.
        """
        weight = torch.ones_like(doubt) if mask is None else mask.to(doubt.dtype)
        count = weight.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (doubt * weight).sum(dim=1, keepdim=True) / count
        offset = doubt - mean
        spread = ((offset.square() * weight).sum(dim=1, keepdim=True) / count).sqrt()
        log_probs = self.scores(x, mask)
        odds = log_probs[..., 0] - log_probs[..., 1]
        odds = odds + self.uncertainty_weight * offset / (spread + 1e-6)
        return torch.stack([F.logsigmoid(odds), F.logsigmoid(-odds)], dim=-1)
