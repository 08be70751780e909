"""Patch embedding of LV-ViT: three convolutions at half of the resolution before the patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.checks import check_integer
from mmdyn.models.backbones.maps import Padding, to_tokens


class ConvStem(nn.Module):
    """Convolutional patch embedding, as in LV-ViT (Jiang et al., arXiv 2104.10858).

    Args:
        in_channels, channels, embed_dims: of the images, the convolutions and the tokens.
        patch_size: side of a patch in pixels, even.

    Raises:
        TypeError, ValueError: if ``channels`` is not a positive integer, or ``patch_size`` is odd.
    """

    def __init__(self, in_channels: int, channels: int, embed_dims: int, patch_size: int) -> None:
        super().__init__()
        check_integer('stem_channels', channels)
        if patch_size % 2:
            raise ValueError(f'stem_channels needs an even patch_size, got {patch_size}')
        self.patch_size = patch_size
        self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.proj = nn.Conv2d(channels, embed_dims, patch_size // 2, stride=patch_size // 2)

    def forward(self, x: Tensor, hw: tuple[int, int], padding: Padding | None = None) -> Tensor:
        """(B, C, h, w) images -> (B, H·W, C) tokens of a map of ``hw`` = (H, W).

        Images are padded with 0 to whole patches. ``padding`` of the map does not affect real
        patches.
        """
        height, width = (side * self.patch_size for side in hw)
        x = F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
        outside = None
        if padding is not None:
            mask = padding.mask.view(-1, 1, *hw)
            half = self.patch_size // 2
            outside = mask.repeat_interleave(half, dim=2).repeat_interleave(half, dim=3)
        for conv, norm in (
            (self.conv1, self.bn1),
            (self.conv2, self.bn2),
            (self.conv3, self.bn3),
        ):
            x = F.relu(norm(conv(x)))
            if outside is not None:
                x = x.masked_fill(outside, 0.0)
        return to_tokens(self.proj(x))
