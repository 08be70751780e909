"""Validation of the arguments of heads that choose tiles."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_strides(finest: int, fine: Any, coarse: Any, tile_size: Any) -> tuple[int, int]:
    """Validate strides in pixels and the side of a tile in locations of the fine stride.

    Args:
        finest: stride of the finest map.
        fine: stride of the dense head; None = the finest.
        coarse: stride of the coarse pass.
        tile_size: a multiple of the coarse stride over the fine one.

    Returns:
        The fine stride, and the side of a coarse location in fine locations.

    Raises:
        ValueError: on an invalid value.
    """
    fine = finest if fine is None else fine
    if fine not in (finest, 2 * finest, 4 * finest, 8 * finest):
        raise ValueError(
            f'fine_stride must be 1, 2, 4 or 8 times finest_stride={finest}, got {fine!r}'
        )
    if coarse not in (2 * fine, 4 * fine, 8 * fine):
        raise ValueError(
            f'coarse_stride must be 2, 4 or 8 times the fine stride, {fine}, got {coarse!r}'
        )
    step = coarse // fine
    whole = isinstance(tile_size, int) and not isinstance(tile_size, bool)
    if not whole or tile_size < 1 or tile_size % step:
        raise ValueError(
            f'tile_size must be a multiple of coarse_stride over the fine stride, here of {step}, '
            f'got {tile_size!r}'
        )
    return fine, step


def check_convolution(name: str, layer: ConvModule) -> None:
    """Raise ValueError for a layer that can't be computed tile by tile."""
    if type(layer.conv) is not nn.Conv2d or tuple(layer.order) != ('conv', 'norm', 'act'):
        raise ValueError(
            f'DynamicUPerHead needs a plain convolution as {name}, got '
            f'{type(layer.conv).__name__}: remove conv_cfg, or use UPerHead'
        )
    if layer.with_norm and not isinstance(layer.norm, _BatchNorm):
        raise ValueError(
            f'DynamicUPerHead needs a norm that treats locations independently, got '
            f'{type(layer.norm).__name__} in {name}: use BN or SyncBN, or UPerHead'
        )


def check_classes(head: nn.Module) -> None:
    """Raise ValueError for a head whose logits are not a softmax over classes."""
    losses = head.loss_decode
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    if head.out_channels == 1 or any(getattr(loss, 'use_sigmoid', False) for loss in losses):
        raise ValueError(
            f'distill_loss needs a softmax over classes, but this head has {head.out_channels} '
            f'channel(s) and loss_decode={losses[0]}: set distill_loss=None'
        )
