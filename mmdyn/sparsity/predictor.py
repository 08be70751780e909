"""The light network that ranks the locations of a map (paper, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, N, C) over the locations that a (B, N) mask, bool or 0 and 1, marks.

    Returns (B, 1, C), 0 for an image of which nothing is marked; the plain mean without a mask.
    """
    if mask is None:
        return x.mean(dim=1, keepdim=True)
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1)


class ScorePredictor(nn.Module):
    """Log-probabilities of (keep, drop) for every location.

    LayerNorm, Linear and GELU embed each location; half of the channels stay
    local, the other half is replaced by its mean over the map; three Linear
    layers turn both into two logits.

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
        # 'head' is avoided in names: many paramwise_cfgs address it by substring.
        # 'norm' is in a norm's name so that the usual rule spares it weight decay.
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
            mask: (B, N), the locations that enter the global half: real ones in
                a padded batch, kept ones where decisions only shrink; None = all.

        Returns:
            (B, N, 2) float32 log-probabilities of (keep, drop), also under
            autocast.
        """
        x = self.in_proj(self.norm(x))
        local, rest = x.split([self.local_channels, x.shape[-1] - self.local_channels], dim=-1)
        # The mean is the same for all locations of an image: its part of the first product too.
        weight, bias = self.out_proj[0].weight, self.out_proj[0].bias
        own, shared = weight.split([self.local_channels, rest.shape[-1]], dim=1)
        hidden = F.linear(local, own) + F.linear(masked_mean(rest, mask), shared, bias)
        for layer in list(self.out_proj)[1:]:
            hidden = layer(hidden)
        return hidden.float().log_softmax(dim=-1)
