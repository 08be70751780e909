"""Linear interpolation along one side as a matrix, for each tap of a kernel on the result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdyn.sparsity.compiling import made_once


# Several for each level and image size.
@made_once(maxsize=128)
def shifted_interpolation(
    size: int, out_size: int, taps: int, align_corners: bool, cells: int, device: torch.device
) -> Tensor:
    """Matrices of linear interpolation along one side, for each tap of a kernel on the result.

    Args:
        size, out_size: locations before and after.
        taps: of the kernel, odd.
        align_corners: as for ``torch.nn.functional.interpolate``.
        cells: number of cells that the result is averaged over; ``out_size`` = no averaging.
        device: of the result.

    Returns:
        (taps, cells, size) float32: weight of each location in the tap's input at each output
        location; rows are 0 where the tap lies beyond the border.
    """
    # On the CPU: copies to the device fail during the capture of a CUDA graph.
    identity = torch.eye(size)[None]
    weights = F.interpolate(identity, size=out_size, mode='linear', align_corners=align_corners)
    columns = F.pad(weights[0], (taps // 2, taps // 2))
    shifted = torch.stack([columns[:, tap : tap + out_size] for tap in range(taps)])
    return F.adaptive_avg_pool1d(shifted, cells).transpose(1, 2).to(device)


@made_once(maxsize=128)
def tile_interpolation(
    size: int,
    out_size: int,
    taps: int,
    align_corners: bool,
    tile: int,
    halo: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """:func:`shifted_interpolation` in tiles of ``tile`` locations, without zeros.

    With ``halo`` locations on either side, ``t = tile + 2 * halo``; rows beyond the border are 0.

    Returns:
        (tiles,) int64, first location of the small map with a weight; (tiles, taps, t, n) float32,
        weights of n locations from there.
    """
    count = -(-out_size // tile)
    cpu = torch.device('cpu')
    rows = shifted_interpolation(size, out_size, taps, align_corners, out_size, cpu)
    rows = F.pad(rows, (0, 0, halo, count * tile - out_size + halo))
    rows = rows.unfold(1, tile + 2 * halo, tile).permute(1, 0, 3, 2)
    used = (rows != 0).any(dim=2).any(dim=1).int()
    first = used.argmax(dim=1)
    length = int((size - used.flip(1).argmax(dim=1) - first).max())
    start = first.clamp(max=size - length)
    span = (start[:, None] + torch.arange(length))[:, None, None, :]
    weights = rows.gather(3, span.expand(-1, *rows.shape[1:3], -1))
    return start.to(device), weights.to(device)
