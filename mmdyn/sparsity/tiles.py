"""Square tiles of a feature map: pooling, cutting out and writing back.

For layers that mix neighbouring locations, such as 3x3 convolutions: tiles are cut out with the
halo that the layer needs. ``T`` is the number of tiles of a map, row-major, ``t`` their side,
``K`` the number of chosen tiles, ``chosen`` (K,) int64 their indices into the flattened (B·T).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TileGrid:
    """A map divided into tiles; the last ones may reach beyond its border.

    Attributes:
        hw: (H, W) of the map.
        tile: side of a tile, in locations.

    Raises:
        ValueError: if ``tile`` is below 1.
    """

    hw: tuple[int, int]
    tile: int

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f'the side of a tile must be at least 1 location, got {self.tile}')

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles; their product is T."""
        return math.ceil(self.hw[0] / self.tile), math.ceil(self.hw[1] / self.tile)

    def means(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mean over the valid locations of each tile: (B, C, H, W) -> (B, T, C).

        ``valid`` is (B, H·W) bool, None = every location. Tiles without valid locations give 0.
        """
        if valid is None:
            pooled = F.avg_pool2d(x, self.tile, ceil_mode=True, count_include_pad=False)
            return pooled.flatten(2).transpose(1, 2)
        real = valid.unflatten(1, self.hw).unsqueeze(1)
        share = self.means(real.to(x.dtype))
        total = self.means(torch.where(real, x, 0.0))
        return torch.where(share > 0, total / share, 0.0)

    def counts(self, valid: Tensor) -> Tensor:
        """Number of True locations of (B, H·W) bool in each tile: (B, T) int64."""
        rows, columns = self.shape
        right = columns * self.tile - self.hw[1]
        whole = F.pad(valid.unflatten(1, self.hw), (0, right, 0, rows * self.tile - self.hw[0]))
        tiles = whole.view(-1, rows, self.tile, columns, self.tile)
        return tiles.sum(dim=(2, 4)).flatten(1)

    def spread(self, values: Tensor) -> Tensor:
        """Upsample values of tiles to locations: (B, T) -> (B, H, W)."""
        grid: Tensor = values.unflatten(1, self.shape)
        grid = grid.repeat_interleave(self.tile, 1).repeat_interleave(self.tile, 2)
        return grid[:, : self.hw[0], : self.hw[1]]

    def places(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, row and column of the chosen tiles, (K,) int64 each."""
        rows, columns = self.shape
        tile = chosen % (rows * columns)
        image = chosen.div(rows * columns, rounding_mode='floor')
        return image, tile.div(columns, rounding_mode='floor'), tile % columns

    def windows(self, chosen: Tensor, halo: int = 0) -> TileWindows:
        """Locations of the chosen tiles, with ``halo`` locations around each."""
        image, row, column = self.places(chosen)
        extent = (self.tile, self.tile)
        return windows_at(image, row * self.tile, column * self.tile, extent, self.hw, halo)

    def put(self, pixels: Tensor, chosen: Tensor, tiles: Tensor) -> Tensor:
        """Write tiles (K, t, t, C) into (B, H, W, C) and return it; may work in place."""
        rows, columns = (self.tile * count for count in self.shape)
        height, width = self.hw
        # Padded to whole tiles and cropped again: dropping locations beyond the map instead would
        # make the number of rows depend on values.
        if (rows, columns) != self.hw:
            pixels = F.pad(pixels, (0, 0, 0, columns - width, 0, rows - height))
        whole = pixels.contiguous()
        place = TileGrid((rows, columns), self.tile).windows(chosen).place
        flat = whole.view(-1, whole.shape[-1])
        flat.index_copy_(0, place.flatten(), tiles.flatten(0, 2).to(flat.dtype))
        return whole[:, :height, :width]


@dataclass(frozen=True, eq=False)
class TileWindows:
    """Locations of K windows of n x m in a batch of maps.

    Attributes:
        place: (K, n, m) int64 indices into the flattened (B·H·W), clamped to the map.
        inside: (K, n, m) bool, False outside the map.
    """

    place: Tensor
    inside: Tensor

    def take(self, x: Tensor) -> Tensor:
        """Cut the windows out of (B, C, H, W): (K, C, n, m), channels-last, zero outside."""
        pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
        tiles = pixels.index_select(0, self.place.flatten())
        return self.hide(tiles.view(*self.place.shape, -1).permute(0, 3, 1, 2))

    def hide(self, tiles: Tensor) -> Tensor:
        """Zero (K, C, n, m) outside the map."""
        return torch.where(self.inside.unsqueeze(1), tiles, 0.0)


def windows_at(
    image: Tensor,
    top: Tensor,
    left: Tensor,
    extent: tuple[int, int],
    hw: tuple[int, int],
    halo: int = 0,
) -> TileWindows:
    """Make windows of one size.

    Args:
        image, top, left: (K,) int64, image, first row and first column of each.
        extent: rows and columns.
        hw: (H, W) of the map.
        halo: additional locations on each side.
    """
    height, width = hw
    (y, x) = (
        first[:, None] + torch.arange(-halo, length + halo, device=first.device)
        for first, length in zip((top, left), extent, strict=True)
    )
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    place = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]
    return TileWindows(image[:, None, None] * (height * width) + place, inside)
