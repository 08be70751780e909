"""The exact UPerHead, on the whole map or on chosen tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models import UPerHead
from torch import Tensor, nn

from mmdyn.convolutions.kernels import Kernel, convolve_valid
from mmdyn.convolutions.products import share_state
from mmdyn.convolutions.upsampled import conv_of_upsampled, trace_tiles
from mmdyn.sparsity.compiling import hw_of, length_of
from mmdyn.sparsity.tiles import TileGrid


class Levels(NamedTuple):
    """Levels of the pyramid by index; 0 is the finest.

    Attributes:
        laterals: (B, C, H_i, W_i), inputs of the levels' 3x3 convolutions.
        outs: outputs of those convolutions, ready for fusion.
    """

    laterals: dict[int, Tensor]
    outs: dict[int, Tensor]


class ExactUPerHead(UPerHead):
    """UPerHead that can compute its logits in chosen tiles only; halos keep them exact."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits like the host: (B, classes, H, W) at the finest map's size."""
        # The hosts' backbones return NCHW maps.
        maps = [
            x.contiguous(memory_format=torch.channels_last) for x in self._transform_inputs(inputs)
        ]
        return self.dense(maps, self.shared_levels(maps, len(self.fpn_convs)))

    def shared_levels(self, maps: Sequence[Tensor], finest: int) -> Levels:
        """Compute the levels of the pyramid down to ``finest``, which all passes share."""
        laterals = {len(self.fpn_convs): self.pyramid_pool(maps[-1])}
        self.descend(laterals, maps, finest)
        outs = {i: self.fpn_convs[i](x) for i, x in laterals.items() if i < len(self.fpn_convs)}
        return Levels(laterals, laterals | outs)

    def pyramid_pool(self, x: Tensor) -> Tensor:
        """Compute the coarsest level, (B, C, H, W), from the coarsest map; see ``psp_forward``.

        Pooled maps are convolved at their own size, where the host upsamples them first.
        """
        layer, size, kernels = self.bottleneck, hw_of(x), pooling_kernels(self)
        out = to_pixels(kernels[0].convolve(x, 1, layer.conv.bias)).contiguous()
        for pool, kernel in zip(self.psp_modules, kernels[1:], strict=True):
            out = conv_of_upsampled(pool(x), kernel, size, self.align_corners, out=out)
        return finish(layer, to_maps(out))

    def descend(self, laterals: dict[int, Tensor], maps: Sequence[Tensor], last: int) -> None:
        """Add laterals of the finer levels down to ``last``, as in the host."""
        for i in range(min(laterals) - 1, last - 1, -1):
            size = hw_of(maps[i])
            above = F.interpolate(
                laterals[i + 1], size, mode='bilinear', align_corners=self.align_corners
            )
            laterals[i] = self.lateral_convs[i](maps[i]) + above

    def dense(self, maps: Sequence[Tensor], shared: Levels) -> Tensor:
        """Compute the logits everywhere, (B, classes, H, W), from the maps and shared levels."""
        laterals = dict(shared.laterals)
        self.descend(laterals, maps, 0)
        size = hw_of(maps[0])
        kernels = fusion_kernels(self.fpn_bottleneck)
        finest, bias = self.fpn_convs[0](laterals[0]), self.fpn_bottleneck.conv.bias
        fused = to_pixels(kernels[0].convolve(finest, 1, bias)).contiguous()
        for i in range(1, len(maps)):
            out = shared.outs[i] if i in shared.outs else self.fpn_convs[i](laterals[i])
            fused = conv_of_upsampled(out, kernels[i], size, self.align_corners, out=fused)
        return self.cls_seg(finish(self.fpn_bottleneck, to_maps(fused)))

    def refine(
        self,
        logits: Tensor,
        maps: Sequence[Tensor],
        shared: Levels,
        grid: TileGrid,
        chosen: Tensor,
    ) -> Tensor:
        """Replace the ``chosen`` tiles of (B, classes, H, W) logits by exact ones.

        See :meth:`dense`, and :mod:`mmdyn.sparsity.tiles` for the tiles.
        """
        if not length_of(chosen):
            return logits
        laterals = dict(shared.laterals)
        self.descend(laterals, maps, 1)
        x = self.finest_in_tiles(maps[0], laterals[1], grid, chosen)
        kernels = fusion_kernels(self.fpn_bottleneck)
        fused = to_pixels(kernels[0].convolve(x, 0, self.fpn_bottleneck.conv.bias))
        for i in range(1, len(maps)):
            hw = hw_of(laterals[i])
            origin = trace_tiles(hw, grid, chosen, self.align_corners, taps=3)
            if i in shared.outs:
                x = origin.windows().take(shared.outs[i])
            else:
                layer = self.fpn_convs[i]
                x = convolve_valid(layer.conv, origin.windows(halo=1).take(laterals[i]))
                x = finish(layer, x)
            fused = fused + origin.convolve(x, kernels[i])
        tiles = self.cls_seg(finish(self.fpn_bottleneck, to_maps(fused)))
        return to_maps(grid.put(to_pixels(logits), chosen, to_pixels(tiles)))

    def finest_in_tiles(self, x: Tensor, above: Tensor, grid: TileGrid, chosen: Tensor) -> Tensor:
        """Compute the finest level in tiles with a halo of 1: (K, C, t + 2, t + 2).

        ``x`` is the backbone's finest map, ``above`` the lateral of the next level.
        """
        around = grid.windows(chosen, halo=2)
        origin = trace_tiles(hw_of(above), grid, chosen, self.align_corners, halo=2)
        lateral = self.lateral_convs[0](around.take(x))
        lateral = lateral + origin.interpolate(origin.windows().take(above))
        layer = self.fpn_convs[0]
        # Zero padding: outside the map the convolution sees 0, not computed values.
        out = finish(layer, convolve_valid(layer.conv, around.hide(lateral)))
        return grid.windows(chosen, halo=1).hide(out)


def to_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view of a channels-last map."""
    return x.permute(0, 2, 3, 1)


def to_maps(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a channels-last view."""
    return x.permute(0, 3, 1, 2)


def finish(layer: ConvModule, x: Tensor) -> Tensor:
    """Apply a layer's norm and activation to its convolution's output, (B, C, H, W)."""
    if layer.with_norm:
        x = layer.norm(x)
    return layer.activate(x) if layer.with_activation else x


class SplitConv2d(nn.Conv2d):
    """A convolution over concatenated maps, with its kernel split by map.

    Args:
        conv: shares its parameters.
        kernels: one per map.
    """

    def __init__(self, conv: nn.Conv2d, kernels: Sequence[Kernel]) -> None:
        super().__init__(1, 1, 1, device='meta')
        share_state(self, conv)
        self.kernels = list(kernels)


def kernels_of(layer: ConvModule, widths: Sequence[int]) -> list[Kernel]:
    """Split a layer's kernel by the widths of the concatenated maps."""
    if isinstance(layer.conv, SplitConv2d):
        return layer.conv.kernels
    return [Kernel(weight) for weight in layer.conv.weight.split(list(widths), dim=1)]


def pooling_kernels(head: UPerHead) -> list[Kernel]:
    """Kernels of the bottleneck, for the coarsest map and each pooled one."""
    return kernels_of(
        head.bottleneck, [head.in_channels[-1], *[head.channels] * len(head.psp_modules)]
    )


def fusion_kernels(fusion: ConvModule) -> list[Kernel]:
    """Kernels of the convolution that fuses the levels."""
    width = fusion.conv.out_channels
    return kernels_of(fusion, [width] * (fusion.conv.in_channels // width))
