"""Two-path execution of a 3x3 convolution: full on chosen tiles, pointwise elsewhere.

The counterpart of :func:`mmdyn.sparsity.route` for layers that look at neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdyn.sparsity.compiling import is_traced
from mmdyn.sparsity.decision import Decision, SparseOutput
from mmdyn.sparsity.routing import Execution
from mmdyn.sparsity.tiles import TileGrid

MapFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Tiles:
    """The chosen tiles of a map, shared by the layers that follow.

    Attributes:
        grid: of the map.
        decision: with (B, T) masks, over tiles.
        execution: ``'masked'`` or ``'gathered'``.
    """

    grid: TileGrid
    decision: Decision
    execution: Execution


class Pyramid(tuple[Tensor, ...]):
    """Feature maps from the finest down, a tuple as the hosts expect, with their origin.

    Attributes:
        tiles: chosen in the finest map; None = no selection.
        source: output of the backbone they were computed from, if known.
    """

    tiles: Tiles | None
    source: SparseOutput | None

    def __new__(
        cls,
        maps: Iterable[Tensor],
        tiles: Tiles | None = None,
        source: SparseOutput | None = None,
    ) -> Pyramid:
        """Make a pyramid of (B, C, H_i, W_i) maps."""
        pyramid = super().__new__(cls, maps)
        pyramid.tiles = tiles
        pyramid.source = source
        return pyramid


def route_tiles(x: Tensor, tiles: Tiles, slow: MapFn, fast: MapFn) -> Tensor:
    """Apply ``slow`` to the chosen tiles of a map and ``fast`` to the other locations.

    Args:
        x: (B, C, H, W).
        tiles: the chosen tiles.
        slow: a 3x3 convolution without padding, with any pointwise layers that follow,
            (..., C, n + 2, m + 2) -> (..., D, n, m).
        fast: a pointwise function, (..., C, n, m) -> (..., D, n, m).

    Returns:
        (B, D, H, W).
    """
    grid, decision = tiles.grid, tiles.decision
    if tiles.execution == 'masked':
        # The gradient to the mask is the difference of the two paths.
        keep = grid.spread(decision.keep_mask).unsqueeze(1).to(x.dtype)
        return keep * slow(F.pad(x, (1, 1, 1, 1))) + (1 - keep) * fast(x)
    out = fast(x)
    if not sum(decision.slow_counts):
        return out
    return paste(out, slow(cut(x, grid, decision.keep_idx, halo=1)), grid, decision.keep_idx)


def cut(x: Tensor, grid: TileGrid, chosen: Tensor, halo: int) -> Tensor:
    """Cut tiles out of (B, C, H, W): (K, C, t + 2·halo, t + 2·halo), zero outside the map."""
    if x.device.type != 'cpu' or is_traced(x):
        return grid.windows(chosen, halo).take(x)
    # Slices on CPU: mmdet's necks produce NCHW maps (required by mmcv's ops), of which a gather of
    # locations would first copy the whole map to NHWC. On a GPU that copy is cheap, and many
    # small copies are slow.
    side = grid.tile + 2 * halo
    tiles = x.new_zeros(len(chosen), x.shape[1], side, side).contiguous(
        memory_format=torch.channels_last
    )
    for k, (image, rows, columns) in enumerate(_extents(grid, chosen, halo)):
        top, left = (max(-first, 0) for first in (rows.start, columns.start))
        part = x[image, :, max(rows.start, 0) : rows.stop, max(columns.start, 0) : columns.stop]
        tiles[k, :, top : top + part.shape[1], left : left + part.shape[2]] = part
    return tiles


def paste(out: Tensor, tiles: Tensor, grid: TileGrid, chosen: Tensor) -> Tensor:
    """Write tiles (K, D, t, t) into (B, D, H, W) and return it; may work in place."""
    if out.device.type != 'cpu' or is_traced(out):
        pixels = grid.put(out.permute(0, 2, 3, 1), chosen, tiles.permute(0, 2, 3, 1))
        return pixels.permute(0, 3, 1, 2).contiguous()
    for tile, (image, rows, columns) in zip(tiles, _extents(grid, chosen), strict=True):
        place = out[image, :, rows, columns]
        place.copy_(tile[:, : place.shape[1], : place.shape[2]])
    return out


def _extents(grid: TileGrid, chosen: Tensor, halo: int = 0) -> Iterator[tuple[int, slice, slice]]:
    """Image, rows and columns of each tile; slices may reach beyond the map."""
    for image, row, column in zip(*(p.tolist() for p in grid.places(chosen)), strict=True):
        rows, columns = (
            slice(place * grid.tile - halo, (place + 1) * grid.tile + halo)
            for place in (row, column)
        )
        yield image, rows, columns
