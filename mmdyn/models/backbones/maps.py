"""Maps as tokens and back, and what of a batch's maps is padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


# Both go by (B, H, W, C): any other way a batch of one image gets a stride from which
# convolutions don't recognise channels-last memory, and they copy.
def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H·W, C), without a copy of a channels-last map."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, H·W, C) -> (B, C, H, W) in channels-last memory, without a copy."""
    return x.unflatten(1, hw).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Padding:
    """What of a batch's maps lies outside the images.

    Attributes:
        shapes: (h, w) of each image's own map, at the top left of the batch's.
        mask: (B, N) bool, True outside.
    """

    shapes: tuple[tuple[int, int], ...]
    mask: Tensor


def hide(x: Tensor, padding: Padding | None) -> Tensor:
    """(B, N, C) with zeros in the padding, if any: what lies beyond the border of an image."""
    return x if padding is None else x.masked_fill(padding.mask.unsqueeze(-1), 0.0)


def positions(
    resized: Callable[[tuple[int, int]], Tensor],
    hw: tuple[int, int],
    padding: Padding | None,
    prefix: int = 0,
) -> Tensor:
    """A batch's position embedding: of each image the one that it has alone.

    ``resized`` makes the (1, prefix + H·W, C) embedding of a map of (H, W), with ``prefix`` tokens
    before those of the map. The batch's is as long, 0 in the padding; the same for all, (1, ...),
    without padding.
    """
    if padding is None:
        return resized(hw)
    tables = []
    for height, width in padding.shapes:
        table = resized((height, width))
        grid = table[:, prefix:].unflatten(1, (height, width))
        grid = F.pad(grid, (0, 0, 0, hw[1] - width, 0, hw[0] - height))
        tables.append(torch.cat([table[:, :prefix], grid.flatten(1, 2)], dim=1))
    return torch.cat(tables)
