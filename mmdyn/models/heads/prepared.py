"""Preparation of heads for inference."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from mmseg.models import UPerHead
from torch import nn

from mmdyn.convolutions.kernels import Choices, FastKernel, Kernel
from mmdyn.models.heads.coarse_pass import CoarsePass
from mmdyn.models.heads.exact_pass import (
    ExactUPerHead,
    SplitConv2d,
    fusion_kernels,
    pooling_kernels,
)


def prepare_head(head: nn.Module, choices: Choices) -> bool:
    """Split the convolutions over concatenated maps, once, in place.

    A stock UPerHead becomes an :class:`ExactUPerHead`; it, and a :class:`CoarsePass`, get split
    kernels. Other modules are left alone.

    Args:
        head: any module.
        choices: see :class:`mmdyn.convolutions.kernels.FastKernel`.

    Returns:
        Whether kernels were split.
    """
    if type(head) is UPerHead and _can_be_exact(head):
        head.__class__ = ExactUPerHead
    if not isinstance(head, ExactUPerHead | CoarsePass):
        return False
    if isinstance(head.fpn_bottleneck.conv, SplitConv2d):
        return False
    if isinstance(head, ExactUPerHead):
        _split(head.bottleneck, pooling_kernels(head), choices)
    _split(head.fpn_bottleneck, fusion_kernels(head.fpn_bottleneck), choices)
    return True


def _can_be_exact(head: UPerHead) -> bool:
    """Whether there are levels to upsample and convolutions that can be split."""
    return len(head.fpn_convs) > 0 and all(
        type(layer.conv) is nn.Conv2d and tuple(layer.order) == ('conv', 'norm', 'act')
        for layer in (head.bottleneck, head.fpn_bottleneck)
    )


def _split(layer: ConvModule, kernels: list[Kernel], choices: Choices) -> None:
    conv, fast, first = layer.conv, [], 0
    for kernel in kernels:
        last = first + kernel.weight.shape[1]
        fast.append(FastKernel(conv, choices, slice(first, last)))
        first = last
    layer.conv = SplitConv2d(conv, fast)
