"""What a head that chooses tiles can't be built with, and what to do then."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_coarse_stride(stride: int, finest: int) -> int:
    """Return how many locations of the finest level one coarse location stands for.

    Raises:
        ValueError: if ``stride`` is not 2, 4 or 8 times the finest level's.
    """
    if stride not in (2 * finest, 4 * finest, 8 * finest):
        raise ValueError(
            f'coarse_stride must be 2, 4 or 8 times finest_stride={finest}, got {stride!r}'
        )
    return stride // finest


def check_tile_size(size: int, step: int) -> int:
    """Return the size, or say what is wrong with it.

    Args:
        size: side of a tile in locations of the finest level.
        step: those that a coarse location stands for.

    Raises:
        ValueError: if a tile is not made of whole coarse locations.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % step:
        raise ValueError(
            f'tile_size must be a multiple of coarse_stride / finest_stride, here of {step}, '
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
