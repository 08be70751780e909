"""3x3 convolutions by Winograd's algorithm F(4x4, 3x3), after Lavin and Gray (arXiv 1509.09308).

A cell of 4x4 outputs takes one product in each of 36 frequencies, where direct convolution takes
144: a quarter of the multiply-adds. The transforms are sums of whole rows, run in strips that stay
in cache, so the algorithm pays with many channels. Errors are two to five times those of direct
convolution.

``D`` is the number of features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdyn.convolutions.products import Product, packed_product

# Six or four tensors of one shape, or stacked ones.
Parts = Sequence[Tensor] | Tensor

CELL, REACH = 4, 6
"""Side of a cell in outputs, and in the inputs it depends on."""

FREQUENCIES = REACH**2

STRIP = 2**23
"""Elements per strip, in all frequencies, of inputs and outputs of the products."""

NEAR, FAR = 2 / 3, 3 / 2
"""Interpolation points, besides their negatives, 0 and infinity. Reciprocal ones halve the error of
1 and 2."""

_NEAR = 1 / (2 * NEAR * (NEAR**2 - FAR**2))
_FAR = 1 / (2 * (FAR**2 - NEAR**2))
# The kernel's transform, scaled so that the inverse takes few operations.
_KERNEL = (
    (1, 0, 0),
    (_NEAR, _NEAR * NEAR, _NEAR * NEAR**2),
    (_NEAR, -_NEAR * NEAR, _NEAR * NEAR**2),
    (_FAR, _FAR * FAR, _FAR * FAR**2),
    (_FAR, -_FAR * FAR, _FAR * FAR**2),
    (0, 0, 1),
)


def winograd_products(weight: Tensor, dtype: torch.dtype = torch.float32) -> list[Product]:
    """Transform a (D, C, 3, 3) kernel: 36 products (..., C) -> (..., D), by column and row.

    Multiplied in ``dtype``, see :func:`mmdyn.convolutions.products.packed_product`.
    """
    points = torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device)
    # In double precision, as the factors are not exact in binary.
    made = torch.einsum('ya,dcab,xb->xydc', points, weight.double(), points)
    return [packed_product(one, dtype=dtype) for one in made.flatten(0, 1).to(weight.dtype)]


def winograd_conv2d(
    x: Tensor,
    products: Sequence[Product],
    features: int,
    padding: int,
    bias: Tensor | None = None,
) -> Tensor:
    """``conv2d(x, weight, bias, padding=padding)`` for inference.

    Args:
        x: (B, C, H, W), without gradient.
        products: from :func:`winograd_products`.
        features: D.
        padding: 0 or 1, zero padding.
        bias: (D,), or None.

    Returns:
        (B, D, H, W), or (B, D, H - 2, W - 2) without padding, channels-last.
    """
    batch, channels, height, width = x.shape
    out_hw = height + 2 * padding - 2, width + 2 * padding - 2
    rows, columns = (-(-side // CELL) for side in out_hw)
    padded = x.new_zeros(batch, rows * CELL + 2, columns * CELL + 2, channels)
    inside = padded[:, padding : padding + height, padding : padding + width]
    inside.copy_(x.permute(0, 2, 3, 1))
    out = x.new_empty(batch, rows, CELL, columns, CELL, features)
    row = FREQUENCIES * columns * (channels + features)
    # Whole images, or rows of cells of one image.
    images = max(1, min(batch, STRIP // (rows * row)))
    length = rows if images > 1 else max(1, min(rows, STRIP // row))
    for image in range(0, batch, images):
        for top in range(0, rows, length):
            part = slice(image, image + images)
            strip = padded[part, CELL * top : CELL * (top + length) + 2]
            _convolve_strip(strip, products, bias, out[part, top : top + length])
    pixels = out.view(batch, rows * CELL, columns * CELL, features)
    return pixels[:, : out_hw[0], : out_hw[1]].permute(0, 3, 1, 2)


def _convolve_strip(
    x: Tensor, products: Sequence[Product], bias: Tensor | None, out: Tensor
) -> None:
    """(B, 4·rows + 2, 4·columns + 2, C) -> (B, rows, 4, columns, 4, D)."""
    batch, rows, _, columns, _, features = out.shape
    channels = x.shape[-1]
    tall = x.new_empty(REACH, batch, rows, x.shape[2], channels)
    _to_frequencies(_every_fourth(x, 1, rows), tall)
    values = x.new_empty(REACH, REACH, batch, rows, columns, channels)
    _to_frequencies(_every_fourth(tall, 3, columns), values)
    values = values.view(REACH, REACH, -1, channels)
    wide = x.new_empty(CELL, REACH, values.shape[2], features)
    for row in range(REACH):
        found = [products[REACH * column + row](values[column, row]) for column in range(REACH)]
        _from_frequencies(found, wide[:, row])
    wide = wide.view(CELL, REACH, batch, rows, columns, features)
    _from_frequencies(wide.unbind(1), [out[:, :, a].permute(3, 0, 1, 2, 4) for a in range(CELL)])
    if bias is not None:
        out.add_(bias)


def _every_fourth(x: Tensor, dim: int, count: int) -> list[Tensor]:
    """The six inputs of each of ``count`` cells along a side, as views."""
    return [
        x[(slice(None),) * dim + (slice(first, first + CELL * (count - 1) + 1, CELL),)]
        for first in range(REACH)
    ]


def _to_frequencies(d: Parts, out: Parts) -> None:
    """Transform inputs along a side of a cell to frequencies."""
    near, far = NEAR**2, FAR**2
    torch.add(d[4], d[2], alpha=-near - far, out=out[0]).add_(d[0])
    even, odd = torch.add(d[4], d[2], alpha=-far), torch.add(d[3], d[1], alpha=-far)
    torch.add(even, odd, alpha=NEAR, out=out[1])
    torch.sub(even, odd, alpha=NEAR, out=out[2])
    torch.add(d[4], d[2], alpha=-near, out=even)
    torch.add(d[3], d[1], alpha=-near, out=odd)
    torch.add(even, odd, alpha=FAR, out=out[3])
    torch.sub(even, odd, alpha=FAR, out=out[4])
    torch.add(d[5], d[3], alpha=-near - far, out=out[5]).add_(d[1])


def _from_frequencies(y: Parts, out: Parts) -> None:
    """Transform frequencies to outputs along a side of a cell."""
    even, odd = y[1] + y[2], y[1] - y[2]
    far_even, far_odd = y[3] + y[4], y[3] - y[4]
    torch.add(y[0], even, alpha=FAR, out=out[0]).add_(far_even, alpha=NEAR**2)
    torch.add(odd, far_odd, alpha=NEAR, out=out[1])
    torch.add(far_even, even, alpha=NEAR, out=out[2])
    torch.add(y[5], odd, alpha=NEAR**2, out=out[3]).add_(far_odd, alpha=FAR)
