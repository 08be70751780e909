"""Convolution of an upsampled map at the cost of the small one.

Upsampling mixes locations and a convolution's taps mix channels, so the two commute: each tap's
channel product is computed on the small map; upsampling, shift and sum over taps are one
interpolation, rows first, then columns. For a map upsampled k times this saves all but 1 / k² of
the products with the kernel; the result is the same, borders included. It can be computed for the
whole map, averaged over cells, or in some tiles only.

``h, w`` is the small map's size, ``H, W`` the upsampled one's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdyn.convolutions.cells import convolve_cells, has_cells
from mmdyn.convolutions.interpolation import shifted_interpolation, tile_interpolation
from mmdyn.convolutions.kernels import FastKernel, Kernel
from mmdyn.convolutions.products import is_plain_inference
from mmdyn.sparsity.compiling import hw_of, is_recorded, length_of
from mmdyn.sparsity.tiles import TileGrid, TileWindows, windows_at

STRIP = 8
"""Rows of an upsampled map computed at a time, for inference."""


def conv_of_upsampled(
    x: Tensor,
    kernel: Kernel,
    size: tuple[int, int],
    align_corners: bool = False,
    *,
    cells: tuple[int, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``conv2d(interpolate(x, size, mode='bilinear'), kernel.weight, padding='same')``.

    Args:
        x: (B, C, h, w).
        kernel: of the convolution.
        size: (H, W) of the upsampled map.
        align_corners: as for ``torch.nn.functional.interpolate``.
        cells: rows and columns of cells to average the result over, like
            ``adaptive_avg_pool2d``; None = no averaging.
        out: (B, *cells, D) or (B, H, W, D) to add the result to, in place without gradients; None =
            nothing.

    Returns:
        (B, H, W, D), or (B, *cells, D), channels last.
    """
    if isinstance(kernel, FastKernel) and is_plain_inference(x, kernel.weight):
        if cells is None:
            return _convolve_in_strips(x, kernel, size, align_corners, out)
        if has_cells(hw_of(x), size, cells, align_corners):
            found = convolve_cells(x, kernel, size[0] // cells[0])
            return found if out is None else out.add_(found)
    rows, columns = (
        shifted_interpolation(small, large, kernel.weight.shape[-1], align_corners, cell, x.device)
        for small, large, cell in zip(hw_of(x), size, cells or size, strict=True)
    )
    return _convolve(x, kernel, rows[None].to(x.dtype), columns[None].to(x.dtype), out)


@dataclass(frozen=True, eq=False)
class TileOrigin:
    """Locations of the small map that tiles of an upsampled map are computed from.

    Attributes:
        hw: (h, w).
        image: (K,) int64, the image of each tile.
        top, left: (K,) int64, first location that it depends on.
        rows: (K, taps, t, n) float32, weights of n rows from there.
        columns: (K, taps, t, m) float32, weights of m columns.
    """

    hw: tuple[int, int]
    image: Tensor
    top: Tensor
    left: Tensor
    rows: Tensor
    columns: Tensor

    def windows(self, halo: int = 0) -> TileWindows:
        """Windows of the n x m locations on the small map, with a halo."""
        extent = (self.rows.shape[-1], self.columns.shape[-1])
        return windows_at(self.image, self.top, self.left, extent, self.hw, halo)

    def convolve(self, x: Tensor, kernel: Kernel) -> Tensor:
        """:func:`conv_of_upsampled` in the tiles: (K, C, n, m) in :meth:`windows` -> (K, t, t, D).

        The kernel must have the ``taps`` that the tiles were traced for.
        """
        return _convolve(x, kernel, self.rows.to(x.dtype), self.columns.to(x.dtype), None)

    def interpolate(self, x: Tensor) -> Tensor:
        """Upsample: (K, C, n, m) -> (K, C, t, t), zero beyond the border."""
        tall = torch.bmm(self.rows[:, 0].to(x.dtype), x.permute(0, 2, 3, 1).flatten(2))
        return _spread(tall, self.columns.to(x.dtype), x.shape[1], None).permute(0, 3, 1, 2)


def trace_tiles(
    hw: tuple[int, int],
    grid: TileGrid,
    chosen: Tensor,
    align_corners: bool = False,
    *,
    taps: int = 1,
    halo: int = 0,
) -> TileOrigin:
    """Find the inputs of chosen tiles of an upsampled map.

    Args:
        hw: (h, w) of the small map.
        grid: the tiles of the upsampled map.
        chosen: (K,) int64, indices into the flattened (B·T).
        align_corners: as for ``torch.nn.functional.interpolate``.
        taps: side of the kernel to apply to the tiles, odd.
        halo: locations around each tile.
    """
    image, row, column = grid.places(chosen)
    (top, rows), (left, columns) = (
        tile_interpolation(small, large, taps, align_corners, grid.tile, halo, chosen.device)
        for small, large in zip(hw, grid.hw, strict=True)
    )
    top, rows = (part.index_select(0, row) for part in (top, rows))
    left, columns = (part.index_select(0, column) for part in (left, columns))
    return TileOrigin(hw, image, top, left, rows, columns)


def _convolve(
    x: Tensor, kernel: Kernel, rows: Tensor, columns: Tensor, out: Tensor | None
) -> Tensor:
    """Products on the small map, then interpolation by (B or 1, k, H, h) and (B or 1, k, W, w)."""
    pixels = x.permute(0, 2, 3, 1).contiguous()
    spread = rows.expand(x.shape[0], -1, -1, -1)
    features, _, taps, _ = kernel.weight.shape
    tall = None
    for tap in range(taps):
        tall = _bmm(spread[:, tap], kernel.row_products(pixels, tap).flatten(2), tall)
    return _spread(tall, columns, features, out)  # type: ignore[arg-type]


def _convolve_in_strips(
    x: Tensor, kernel: Kernel, size: tuple[int, int], align_corners: bool, out: Tensor | None
) -> Tensor:
    """:func:`conv_of_upsampled` for inference, in strips of rows.

    Intermediate results then stay in cache, and only those rows of the small map are multiplied
    that a strip depends on.
    """
    pixels = x.permute(0, 2, 3, 1).contiguous()
    features, _, taps, _ = kernel.weight.shape
    height, width = hw_of(x)
    starts, rows = tile_interpolation(height, size[0], taps, align_corners, STRIP, 0, x.device)
    columns = shifted_interpolation(width, size[1], taps, align_corners, size[1], x.device)
    columns = columns.transpose(0, 1).transpose(1, 2).flatten(1)
    products = [kernel.row_products(pixels, tap).flatten(2) for tap in range(taps)]
    if out is None:
        out = x.new_zeros(x.shape[0], *size, features)
    for image, result in enumerate(out):
        for i, first in enumerate(starts.tolist()):
            strip = result[i * STRIP : (i + 1) * STRIP]
            part = slice(first, first + rows.shape[-1])
            tall = x.new_zeros(len(strip), products[0].shape[-1])
            for weights, product in zip(rows[i], products, strict=True):
                tall.addmm_(weights[: len(strip)], product[image, part])
            tall = tall.view(len(strip), -1, features)
            strip.baddbmm_(columns.expand(len(strip), -1, -1), tall)
    return out


def _spread(tall: Tensor, columns: Tensor, features: int, out: Tensor | None) -> Tensor:
    """Interpolate columns: (B, H, w · k · D) -> (B, H, W, D)."""
    batch, height = tall.shape[:2]
    weights = columns.permute(0, 2, 3, 1).flatten(2)
    # All rows of a map have the same weights.
    if length_of(weights) == 1:
        weights = weights.expand(batch * height, -1, -1)
    else:
        weights = weights.repeat_interleave(height, 0)
    total = None if out is None else out.view(batch * height, -1, features)
    spread = _bmm(weights, tall.reshape(batch * height, -1, features), total)
    return spread.view(batch, height, -1, features)


def _bmm(a: Tensor, b: Tensor, total: Tensor | None) -> Tensor:
    a = a.to(b.dtype)  # autocast may have changed the dtype of the products
    if total is None:
        return torch.bmm(a, b)
    if is_recorded():
        # mmengine's and fvcore's counters don't support baddbmm.
        return total + torch.bmm(a, b)
    add = torch.baddbmm if torch.is_grad_enabled() else Tensor.baddbmm_
    return add(total, a, b)
