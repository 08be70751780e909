"""A convolution of an upsampled map, averaged back to the size of the small map.

In the interior that is a 3x3 convolution of the small map with a mixture of the kernel's taps; it
uses the fastest algorithm. At the borders, where interpolation has no neighbour and the convolution
sees zeros, it is corrected by four sums over one row or column. The result equals that of
:func:`mmdyn.convolutions.upsampled.conv_of_upsampled`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdyn.convolutions.interpolation import shifted_interpolation
from mmdyn.convolutions.kernels import Choices, FastKernel, conv_with
from mmdyn.convolutions.products import Product, packed_product
from mmdyn.sparsity.compiling import hw_of

_TAPS = 3


def has_cells(
    hw: tuple[int, int], size: tuple[int, int], cells: tuple[int, int], align_corners: bool
) -> bool:
    """Whether :func:`convolve_cells` supports upsampling a map of ``hw`` to ``size``."""
    factor = size[0] // cells[0]
    whole = size == (factor * cells[0], factor * cells[1])
    return hw == cells and whole and factor > 1 and not align_corners and min(hw) > 1


def convolve_cells(x: Tensor, kernel: FastKernel, factor: int) -> Tensor:
    """Upsample ``factor`` times, convolve, average: (B, C, h, w) -> (B, h, w, D)."""
    made: CellKernel = kernel.made.get_or_make(
        f'cells {factor}', lambda: CellKernel(kernel.weight, factor, kernel.choices)
    )
    return made.convolve(x)


class CellKernel:
    """A 3x3 kernel on cells of ``factor`` x ``factor`` locations.

    Args:
        weight: (D, C, 3, 3).
        factor: of the upsampling, 2 or more.
        choices: see :class:`FastKernel`.
    """

    def __init__(self, weight: Tensor, factor: int, choices: Choices) -> None:
        self.factor = factor
        side = self.side(_TAPS + 2, weight)
        # (taps, 3): weights of a tap for the previous, own and next cell.
        inner = side[:, 2, 1:4]
        mixed = torch.einsum('dcab,ai,bj->dcij', weight, inner, inner)
        self.inner = FastKernel(conv_with(mixed.contiguous()), choices)
        # The first row differs in the weight of a tap for its own cell; the last row mirrors it.
        first = side[:, 0, 0] - inner[:, 1]
        last = first.flip(0)
        self.ends = first, last
        self.rows, self.columns = (
            [
                packed_product(_stacked(torch.einsum(sum_of, weight, end)), dtype=choices.dtype)
                for end in self.ends
            ]
            for sum_of in ('dcab,a->dcb', 'dcab,b->dca')
        )

    def side(self, size: int, like: Tensor) -> Tensor:
        """(taps, size, size): weights of each tap for the cells along a side of ``size`` cells."""
        large = size * self.factor
        made = shifted_interpolation(size, large, _TAPS, False, size, like.device)
        return made.to(like.dtype)

    def convolve(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, h, w, D), channels last; both sides are 2 or more."""
        out = self.inner.convolve(x, padding=1).permute(0, 2, 3, 1).contiguous()
        height, width = hw_of(x)
        pixels = x.permute(0, 2, 3, 1)
        across, down = self.side(width, x), self.side(height, x).clone()
        for end, place in zip(self.ends, (0, -1), strict=True):
            # Corners are included in the rows.
            down[:, place, place] -= end
        for place, row, column in zip((0, -1), self.rows, self.columns, strict=True):
            out[:, place] += _along(across, row, pixels[:, place])
            out[:, :, place] += _along(down, column, pixels[:, :, place])
        return out


def _stacked(kernel: Tensor) -> Tensor:
    """(D, C, taps) -> (taps · D, C)."""
    return kernel.permute(2, 0, 1).flatten(0, 1)


def _along(side: Tensor, product: Product, line: Tensor) -> Tensor:
    """Correction of one row or column: (B, n, C) -> (B, n, D), by (taps, n, n) weights."""
    taps = product(line.contiguous()).unflatten(2, (_TAPS, -1)).flatten(1, 2)
    weights = side.permute(1, 2, 0).flatten(1)
    return torch.matmul(weights, taps)
