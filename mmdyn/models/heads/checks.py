"""What a head that chooses tiles can't be built with, and what to do then."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_fine_stride(stride: int | None, finest: int) -> int:
    """Return the stride at which the dense head works.

    Args:
        stride: the asked one; None = the finest map's.
        finest: the finest map's.

    Raises:
        ValueError: if it is not 1, 2, 4 or 8 times the finest map's.
    """
    if stride is None:
        return finest
    if stride not in (finest, 2 * finest, 4 * finest, 8 * finest):
        raise ValueError(
            f'fine_stride must be 1, 2, 4 or 8 times finest_stride={finest}, got {stride!r}'
        )
    return stride


def check_coarse_stride(stride: int, fine: int) -> int:
    """Return how many locations of the fine stride one coarse location stands for, along a side.

    Raises:
        ValueError: if ``stride`` is not 2, 4 or 8 times the fine one.
    """
    if stride not in (2 * fine, 4 * fine, 8 * fine):
        raise ValueError(
            f'coarse_stride must be 2, 4 or 8 times the fine stride, {fine}, got {stride!r}'
        )
    return stride // fine


def check_tile_size(size: int, step: int) -> int:
    """Return the size, or say what is wrong with it.

    Args:
        size: side of a tile in locations of the fine stride.
        step: those that a coarse location stands for, along a side.

    Raises:
        ValueError: if a tile is not made of whole coarse locations.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % step:
        raise ValueError(
            f'tile_size must be a multiple of coarse_stride over the fine stride, here of {step}, '
            f'got {size!r}'
        )
    return size


def check_convolution(name: str, layer: ConvModule) -> None:
    """Refuse a layer that can't be computed tile by tile.

    Raises:
        ValueError: if it is no plain convolution, or its norm looks beyond a location.
    """
    if type(layer.conv) is not nn.Conv2d or tuple(layer.order) != ('conv', 'norm', 'act'):
        raise ValueError(
            f'DynamicUPerHead needs a plain convolution as {name}, got '
            f'{type(layer.conv).__name__}: leave conv_cfg out, or use UPerHead'
        )
    if layer.with_norm and not isinstance(layer.norm, _BatchNorm):
        raise ValueError(
            f'DynamicUPerHead needs a norm in which locations do not depend on each other, got '
            f'{type(layer.norm).__name__} in {name}: use BN or SyncBN, or UPerHead'
        )
