"""A pyramid from a plain backbone's last map."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mmdyn.models.init_order import init_then_load
from mmdyn.registry import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Pyramid from a single map, which a plain ViT needs for detection.

    The last map is resized to 4, 2, 1 and 1/2 times its resolution, each followed by a 1x1 and a
    3x3 convolution (Li et al., arXiv 2203.16527, section 3): levels of stride 4, 8, 16 and 32 from
    a map of stride 16. Further levels subsample the last one by 2, as in the hosts' ``FPN``.

    Args:
        in_channels: C of the map, a multiple of 4.
        out_channels: channels of every level.
        num_outs: number of levels, at least 4.
        init_cfg: as in mmengine.

    Raises:
        ValueError: if ``in_channels`` or ``num_outs`` is invalid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_channels % 4:
            raise ValueError(f'in_channels must be a multiple of 4, got {in_channels}')
        if num_outs < 4:
            raise ValueError(f'num_outs={num_outs} must be at least 4')
        half, quarter = in_channels // 2, in_channels // 4
        self.resize = ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                    LayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ),
                nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                nn.Identity(),
                # Rounds up, so that a map one location wide still has a level below it.
                nn.MaxPool2d(2, stride=2, ceil_mode=True),
            ]
        )
        self.levels = ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for channels in (quarter, half, in_channels, in_channels)
        )
        self.extra_levels = num_outs - 4

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``."""
        init_then_load(self, super().init_weights)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the pyramid.

        Args:
            inputs: a backbone's maps; only the last, (B, C, H, W), is used.

        Returns:
            ``num_outs`` maps of ``out_channels``, highest resolution first.
        """
        outs = [
            level(resize(inputs[-1]))
            for resize, level in zip(self.resize, self.levels, strict=True)
        ]
        for _ in range(self.extra_levels):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
