"""Linear interpolation along one side as a matrix, by the taps of a kernel over the result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdyn.sparsity.compiling import made_once


# Some for each level and size of image.
@made_once(maxsize=128)
def shifted_interpolation(
    size: int, out_size: int, taps: int, align_corners: bool, cells: int, device: torch.device
) -> Tensor:
    """Linear interpolation along one side, once for each tap of a kernel over the result.

    Args:
        size, out_size: locations before and after.
        taps: of the kernel, odd.
        align_corners: as for ``torch.nn.functional.interpolate``.
        cells: how many cells the result is averaged over; ``out_size`` = not at all.
        device: where the result lives.

    Returns:
        (taps, cells, size) float32: the weight that a location has in what the tap sees
        at each output location; rows are 0 where the tap looks beyond the border.
    """
    # On the CPU: during the capture of a CUDA graph a copy fails, where values would be missing.
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
    """:func:`shifted_interpolation` cut into tiles of ``tile`` locations, zeros left out.

    ``halo`` locations come on either side, ``t = tile + 2 * halo``; rows of locations beyond the
    border are 0.

    Returns:
        (tiles,) int64, the first location of the small map that has a weight; (tiles, taps, t, n)
        float32, those of n locations from there on.
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
