"""Conversion between maps and tokens, and padding of maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


# Both go through (B, H, W, C): other routes give batches of one image strides in which
# convolutions don't recognise channels-last memory, so they copy.
def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H·W, C), a view of a channels-last map."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, H·W, C) -> (B, C, H, W), a channels-last view."""
    return x.unflatten(1, hw).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Padding:
    """Padding of a batch's maps.

    Attributes:
        shapes: unpadded (h, w) of each image's map, at the top left.
        mask: (B, N) bool, True in the padding.
    """

    shapes: tuple[tuple[int, int], ...]
    mask: Tensor


def hide(x: Tensor, padding: Padding | None) -> Tensor:
    """Zero (B, N, C) in the padding, if any."""
    return x if padding is None else x.masked_fill(padding.mask.unsqueeze(-1), 0.0)


def positions(
    resized: Callable[[tuple[int, int]], Tensor],
    hw: tuple[int, int],
    padding: Padding | None,
    prefix: int = 0,
) -> Tensor:
    """Position embeddings of a batch, each image's as without padding.

    ``resized`` returns the (1, prefix + H·W, C) embedding of a map of (H, W), after ``prefix``
    other tokens. Embeddings are 0 in the padding. Without padding one, (1, ...), serves
    all images.
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
