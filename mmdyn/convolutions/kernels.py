"""A 3x3 kernel, plain or prepared for inference."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from mmdyn.convolutions.products import (
    MadeOnce,
    is_plain,
    is_plain_inference,
    packed_product,
    share_state,
)
from mmdyn.convolutions.winograd import CELL, winograd_conv2d, winograd_products
from mmdyn.sparsity.compiling import hw_of


class Kernel:
    """The (D, C, k, k) weight of a convolution, without its bias.

    Attributes:
        weight: see above; k is odd.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def convolve(self, x: Tensor, padding: int, bias: Tensor | None = None) -> Tensor:
        """``conv2d(x, weight, bias, padding=padding)``."""
        return F.conv2d(x, self.weight, bias, padding=padding)

    def row_products(self, pixels: Tensor, row: int) -> Tensor:
        """Products of locations with the taps in one row: (..., C) -> (..., k · D)."""
        return F.linear(pixels, self.row(row))

    def row(self, row: int) -> Tensor:
        """(k · D, C), the taps of one row, concatenated."""
        return self.weight[:, :, row].permute(2, 0, 1).flatten(0, 1)


class Choices(dict[tuple[int, ...], bool]):
    """Whether Winograd's algorithm is faster, by channels, features and size.

    Measurements hold for all kernels of the same shape, and for sizes up to twice as large.

    Args:
        dtype: of the products, float32 or bfloat16.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype


class FastKernel(Kernel):
    """A kernel for inference: products packed, convolutions by the faster of two algorithms.

    The algorithm is chosen by measurement on the first call at each size, which takes a few times
    as long. With gradients, in a traced graph, in other dtypes than float32 or on other devices
    than a CPU it is a plain :class:`Kernel`.

    Args:
        conv: its weight is read once and must not change afterwards.
        choices: measurements, shared by the kernels of a model.
        channels: subset of the convolution's input channels; None = all.

    Attributes:
        made: cache of packed forms of the weight.
    """

    def __init__(self, conv: nn.Conv2d, choices: Choices, channels: slice | None = None) -> None:
        self.conv, self.channels = conv, channels
        self.choices = choices
        self.made = MadeOnce()

    # Not stored, as the convolution may be moved to another device or dtype.
    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        weight = self.conv.weight
        return weight if self.channels is None else weight[:, self.channels]

    def convolve(self, x: Tensor, padding: int, bias: Tensor | None = None) -> Tensor:
        # The order matters: sizes of a traced map may be symbols.
        plain = is_plain_inference(x, self.weight) and x.dim() == 4
        if not plain or min(hw_of(x)) + 2 * padding < 3:
            return super().convolve(x, padding, bias)
        height, width = (-(-side // CELL) for side in hw_of(x))
        size = (x.shape[0] * height * width).bit_length()
        key = (*self.weight.shape[:2], is_channels_last(x), size)
        if key not in self.choices:
            winograd = _seconds(self.winograd, x, padding, bias)
            direct = _seconds(self.direct, x, padding, bias)
            self.choices[key] = winograd < direct
            if not any(it for shape, it in self.choices.items() if shape[:2] == key[:2]):
                self.made.pop('frequencies', None)  # computed again if a size needs them
        return (self.winograd if self.choices[key] else self.direct)(x, padding, bias)

    def direct(self, x: Tensor, padding: int, bias: Tensor | None = None) -> Tensor:
        """:meth:`convolve` directly, multiplied in the model's dtype."""
        dtype = self.choices.dtype
        if dtype == torch.float32:
            return super().convolve(x, padding, bias)
        weight = self.made.get_or_make('rounded', lambda: self.weight.to(dtype))
        bias = None if bias is None else bias.to(dtype)
        return F.conv2d(x.to(dtype), weight, bias, padding=padding).to(x.dtype)

    def winograd(self, x: Tensor, padding: int, bias: Tensor | None = None) -> Tensor:
        """:meth:`convolve` by Winograd's algorithm, in the memory format of ``x``."""
        products = self.made.get_or_make(
            'frequencies', lambda: winograd_products(self.weight, self.choices.dtype)
        )
        out = winograd_conv2d(x, products, self.weight.shape[0], padding, bias)
        if is_channels_last(x):
            return out.contiguous(memory_format=torch.channels_last)
        return _to_contiguous(out)

    def row_products(self, pixels: Tensor, row: int) -> Tensor:
        if not is_plain_inference(pixels, self.weight):
            return super().row_products(pixels, row)
        product = self.made.get_or_make(
            f'row {row}', lambda: packed_product(self.row(row), dtype=self.choices.dtype)
        )
        return product(pixels)  # type: ignore[no-any-return]


def is_channels_last(x: Tensor) -> bool:
    """Whether conv2d returns a channels-last map for (B, C, H, W)."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _to_contiguous(x: Tensor) -> Tensor:
    """Copy a channels-last map to contiguous memory, a few rows at a time.

    A plain copy of a large map writes every value to another page, which is four times slower.
    """
    out = x.new_empty(x.shape)
    for part, made in zip(x.split(2, dim=2), out.split(2, dim=2), strict=True):
        made.copy_(part)
    return out


def _seconds(run: Callable[..., object], *args: object) -> float:
    """Time of the faster of two calls, after a warm-up."""
    times = []
    # Without modes that count or trace operators.
    with _disable_current_modes():
        for _ in range(3):
            start = time.perf_counter()
            run(*args)
            times.append(time.perf_counter() - start)
    return min(times[1:])


class FastConv2d(nn.Conv2d):
    """A 3x3 convolution with a :class:`FastKernel`, sharing the parameters of another.

    Args:
        conv: stride 1, one group, zero padding or none; see :func:`can_be_fast`.
        choices: see :class:`FastKernel`.
    """

    def __init__(self, conv: nn.Conv2d, choices: Choices) -> None:
        super().__init__(1, 1, 1, bias=False, device='meta')
        share_state(self, conv)
        self.kernel = FastKernel(self, choices)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.convolve(x, self.padding[0], self.bias)  # type: ignore[arg-type]


def conv_with(weight: Tensor) -> nn.Conv2d:
    """A convolution with a given (D, C, k, k) weight, without bias or padding."""
    conv = nn.Conv2d(1, 1, 1, bias=False, device='meta')
    conv.weight = nn.Parameter(weight, requires_grad=False)
    return conv


def can_be_fast(layer: nn.Module) -> bool:
    """Whether a layer is a 3x3 convolution that :class:`FastConv2d` supports."""
    if not isinstance(layer, nn.Conv2d) or not is_plain(layer, nn.Conv2d):
        return False
    if layer.padding not in ((0, 0), (1, 1)):
        return False
    shape = layer.kernel_size, layer.stride, layer.dilation, layer.groups, layer.padding_mode
    return shape == ((3, 3), (1, 1), (1, 1), 1, 'zeros')


def kernel_of(conv: nn.Conv2d) -> Kernel:
    """The kernel of a convolution, the fast one if it has one."""
    return conv.kernel if isinstance(conv, FastConv2d) else Kernel(conv.weight)


def convolve_valid(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution without its padding, with its bias: (B, C, h + 2, w + 2) -> (B, D, h, w)."""
    return kernel_of(conv).convolve(x, 0, conv.bias)
