"""The coarse pass of a UPerHead: all levels at one coarse stride."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models import UPerHead
from torch import Tensor, nn

from mmdyn.convolutions.kernels import kernel_of
from mmdyn.convolutions.upsampled import conv_of_upsampled
from mmdyn.models.heads.exact_pass import Levels, finish, fusion_kernels, to_maps
from mmdyn.sparsity.compiling import hw_of


class CoarsePass(nn.Module):
    """Copies of the head's layers that run at the coarse stride.

    Args:
        head: the layers are copied under their names; its finest ``fine_levels`` levels are
            averaged.
        step: side of a coarse location in locations of the finest level.
    """

    def __init__(self, head: UPerHead, step: int) -> None:
        super().__init__()
        self.step = step
        self.align_corners = head.align_corners
        self.lateral_convs = copy.deepcopy(head.lateral_convs[: head.fine_levels])
        self.fpn_convs = copy.deepcopy(head.fpn_convs[: head.fine_levels])
        self.fpn_bottleneck = copy.deepcopy(head.fpn_bottleneck)
        self.dropout = copy.deepcopy(head.dropout)
        self.conv_seg = copy.deepcopy(head.conv_seg)

    def forward(self, maps: Sequence[Tensor], shared: Levels, *, detached: bool) -> Tensor:
        """Compute the dense head's features, averaged to the coarse stride: (B, C, h, w).

        Finer maps are averaged over cells of that stride. Convolutions keep the extent that they
        have in the dense head; their outputs are averaged over cells.

        Args:
            maps: of the backbone.
            shared: the coarser levels.
            detached: whether to stop gradients to both.
        """
        if detached:
            maps = [x.detach() for x in maps]
            shared = Levels(*({i: x.detach() for i, x in level.items()} for level in shared))
        size, kernels = hw_of(maps[0]), fusion_kernels(self.fpn_bottleneck)
        cells = tuple(-(-side // self.step) for side in size)
        lateral, fused = shared.laterals[len(self.fpn_convs)], None
        for i in range(len(self.fpn_convs) - 1, -1, -1):
            x = self.lateral_convs[i](F.adaptive_avg_pool2d(maps[i], cells))
            lateral = x + to_cells(lateral, cells)
            layer, hw = self.fpn_convs[i], hw_of(maps[i])
            # Cells are aligned as without align_corners, whatever the head's setting.
            x = conv_of_upsampled(lateral, kernel_of(layer.conv), hw, cells=cells)
            x = finish(layer, with_bias(layer, to_maps(x)))
            fused = conv_of_upsampled(x, kernels[i], size, cells=cells, out=fused)
        for i, x in shared.outs.items():
            fused = conv_of_upsampled(
                x, kernels[i], size, self.align_corners, cells=cells, out=fused
            )
        return finish(self.fpn_bottleneck, with_bias(self.fpn_bottleneck, to_maps(fused)))

    def classify(self, feats: Tensor) -> Tensor:
        """Classify features like the host's ``cls_seg``: (B, classes, h, w) logits."""
        return self.conv_seg(feats if self.dropout is None else self.dropout(feats))


def with_bias(layer: ConvModule, x: Tensor) -> Tensor:
    """Add the bias of a layer's convolution, if any, to (B, C, H, W)."""
    return x if layer.conv.bias is None else x + layer.conv.bias[:, None, None]


def to_cells(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *cells), averaged if the cells are coarser, else interpolated."""
    height, width = hw_of(x)
    if height >= cells[0] and width >= cells[1]:
        return F.adaptive_avg_pool2d(x, cells)
    return F.interpolate(x, cells, mode='bilinear', align_corners=False)
