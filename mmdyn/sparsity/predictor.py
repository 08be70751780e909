"""The small network that scores the locations of a map (paper, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, N, C) over the locations marked in a (B, N) mask; None = all.

    Returns (B, 1, C), zero for an image without marked locations.
    """
    if mask is None:
        return x.mean(dim=1, keepdim=True)
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1)


class ScorePredictor(nn.Module):
    """Log-probabilities of (keep, drop) for every location.

    LayerNorm, Linear and GELU embed each location. Half of the channels stay local, the other half
    is replaced by its mean over the map. Three Linear layers map both to two logits.

    Args:
        channels: C of the map, at least 4 (the last hidden layer has C / 4).
        norm_eps: of the LayerNorm.

    Raises:
        ValueError: if ``channels`` is below 4.
    """

    def __init__(self, channels: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        if channels < 4:
            raise ValueError(f'ScorePredictor needs at least 4 channels, got {channels}')
        self.local_channels = channels // 2
        # No 'head' in the names: many paramwise_cfgs match it by substring. 'norm' exempts the
        # LayerNorm from weight decay under the usual rule.
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        self.in_proj = nn.Sequential(nn.Linear(channels, channels), nn.GELU())
        self.out_proj: Any = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.GELU(),
            nn.Linear(channels // 2, channels // 4),
            nn.GELU(),
            nn.Linear(channels // 4, 2),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score the locations of ``x``.

        Args:
            x: (B, N, C) features.
            mask: (B, N), the locations in the mean: real ones in a padded batch, kept ones where
                decisions only shrink; None = all.

        Returns:
            (B, N, 2) float32 log-probabilities of (keep, drop), also under autocast.
        """
        x = self.in_proj(self.norm(x))
        local, rest = x.split([self.local_channels, x.shape[-1] - self.local_channels], dim=-1)
        # The mean is constant over an image, so its half of the first Linear is computed once.
        weight, bias = self.out_proj[0].weight, self.out_proj[0].bias
        own, shared = weight.split([self.local_channels, rest.shape[-1]], dim=1)
        hidden = F.linear(local, own) + F.linear(masked_mean(rest, mask), shared, bias)
        for layer in list(self.out_proj)[1:]:
            hidden = layer(hidden)
        return hidden.float().log_softmax(dim=-1)
