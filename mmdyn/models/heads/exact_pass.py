"""The exact UPerHead, everywhere or in chosen tiles only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models import UPerHead
from torch import Tensor

from mmdyn.convolutions.upsampled import conv_of_upsampled, trace_tiles
from mmdyn.sparsity.compiling import hw_of, length_of
from mmdyn.sparsity.tiles import TileGrid


class Levels(NamedTuple):
    """Levels of the pyramid, by number; 0 is the finest.

    Attributes:
        laterals: (B, C, H_i, W_i) before the level's own convolution.
        outs: the same after it, ready to be fused.
    """

    laterals: dict[int, Tensor]
    outs: dict[int, Tensor]


class ExactUPerHead(UPerHead):
    """UPerHead that can compute its logits in chosen tiles only; halos make them exact."""

    def shared_levels(self, maps: Sequence[Tensor], finest: int) -> Levels:
        """The levels of the pyramid down to ``finest``, which other passes can build on."""
        laterals = {len(self.fpn_convs): self.psp_forward(maps)}
        self.descend(laterals, maps, finest)
        outs = {i: self.fpn_convs[i](x) for i, x in laterals.items() if i < len(self.fpn_convs)}
        return Levels(laterals, laterals | outs)

    def descend(self, laterals: dict[int, Tensor], maps: Sequence[Tensor], last: int) -> None:
        """Add the finer levels' laterals, down to the ``last``, as the host makes them."""
        for i in range(min(laterals) - 1, last - 1, -1):
            size = hw_of(maps[i])
            above = F.interpolate(
                laterals[i + 1], size, mode='bilinear', align_corners=self.align_corners
            )
            laterals[i] = self.lateral_convs[i](maps[i]) + above

    def dense(self, maps: Sequence[Tensor], shared: Levels) -> Tensor:
        """(B, classes, H, W): the logits everywhere, from the backbone's maps and known levels."""
        laterals = dict(shared.laterals)
        self.descend(laterals, maps, 0)
        size = hw_of(maps[0])
        kernel = kernel_of(self.fpn_bottleneck, 0)
        fused = to_pixels(F.conv2d(self.fpn_convs[0](laterals[0]), kernel, padding=1)).contiguous()
        for i in range(1, len(maps)):
            out = shared.outs[i] if i in shared.outs else self.fpn_convs[i](laterals[i])
            kernel = kernel_of(self.fpn_bottleneck, i)
            fused = conv_of_upsampled(out, kernel, size, self.align_corners, out=fused)
        return self.cls_seg(finish(self.fpn_bottleneck, to_maps(fused)))

    def refine(
        self,
        logits: Tensor,
        maps: Sequence[Tensor],
        shared: Levels,
        grid: TileGrid,
        chosen: Tensor,
    ) -> Tensor:
        """Put exact logits into the ``chosen`` tiles of other ones, (B, classes, H, W).

        See :meth:`dense`, and :mod:`mmdyn.sparsity.tiles` for the tiles.
        """
        if not length_of(chosen):
            return logits
        laterals = dict(shared.laterals)
        self.descend(laterals, maps, 1)
        x = self.finest_in_tiles(maps[0], laterals[1], grid, chosen)
        fused = to_pixels(F.conv2d(x, kernel_of(self.fpn_bottleneck, 0)))
        for i in range(1, len(maps)):
            hw = hw_of(laterals[i])
            origin = trace_tiles(hw, grid, chosen, self.align_corners, taps=3)
            if i in shared.outs:
                x = origin.windows().take(shared.outs[i])
            else:
                layer = self.fpn_convs[i]
                x = F.conv2d(origin.windows(halo=1).take(laterals[i]), layer.conv.weight)
                x = finish(layer, x)
            fused = fused + origin.convolve(x, kernel_of(self.fpn_bottleneck, i))
        tiles = self.cls_seg(finish(self.fpn_bottleneck, to_maps(fused)))
        return to_maps(grid.put(to_pixels(logits), chosen, to_pixels(tiles)))

    def finest_in_tiles(self, x: Tensor, above: Tensor, grid: TileGrid, chosen: Tensor) -> Tensor:
        """(K, C, t + 2, t + 2): the finest level of the pyramid in tiles, with a halo of 1.

        ``x`` is the backbone's finest map, ``above`` the lateral of the next level.
        """
        around = grid.windows(chosen, halo=2)
        origin = trace_tiles(hw_of(above), grid, chosen, self.align_corners, halo=2)
        lateral = self.lateral_convs[0](around.take(x))
        lateral = lateral + origin.interpolate(origin.windows().take(above))
        layer = self.fpn_convs[0]
        # What a convolution sees beyond the map is 0, not what would be computed there.
        out = finish(layer, F.conv2d(around.hide(lateral), layer.conv.weight))
        return grid.windows(chosen, halo=1).hide(out)


def to_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), without a copy of a channels-last map."""
    return x.permute(0, 2, 3, 1)


def to_maps(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) in channels-last memory, without a copy."""
    return x.permute(0, 3, 1, 2)


def finish(layer: ConvModule, x: Tensor) -> Tensor:
    """What a layer makes of its convolution's result, (B, C, H, W), taken without bias."""
    if layer.conv.bias is not None:
        x = x + layer.conv.bias[:, None, None]
    if layer.with_norm:
        x = layer.norm(x)
    return layer.activate(x) if layer.with_activation else x


def kernel_of(fusion: ConvModule, level: int) -> Tensor:
    """(C, C, 3, 3): the part of a fusion convolution's weights that a level meets."""
    width = fusion.conv.out_channels
    return fusion.conv.weight[:, level * width : (level + 1) * width]
