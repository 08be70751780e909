"""Matrix products with packed weights, for inference on a CPU.

torch packs a weight in every call or reads it as it is; oneDNN's operator, which torch.compile uses
for frozen models, takes weights packed in advance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from mmdyn.sparsity.compiling import is_traced

Product = Callable[[Tensor], Tensor]


def share_state(layer: nn.Module, other: nn.Module) -> None:
    """Share parameters, settings and hooks of another layer, without copies."""
    layer.__dict__.update(other.__dict__)


class MadeOnce(dict[str, Any]):
    """Cache of packed forms of a weight; cleared by copying and pickling, which they don't
    support."""

    def get_or_make(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the entry of a name, making it if necessary."""
        if name not in self:
            # Hidden from modes that count or trace operators.
            with _disable_current_modes():
                self[name] = make()
        return self[name]

    def __reduce__(self) -> tuple[type[MadeOnce], tuple[()]]:
        return MadeOnce, ()


ROWS = 1024
"""Number of rows that weights are packed for; others work too."""


def is_plain_inference(x: Tensor, weight: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the fast CPU path applies: float32, on a CPU, no gradient, no autocast, no graph.

    ``x`` may have ``dtype`` too.
    """
    return (
        not is_traced(x)
        and x.device.type == weight.device.type == 'cpu'
        and x.dtype in (torch.float32, dtype)
        and weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not _is_autocast()
    )


def _is_autocast() -> bool:
    # torch before 2.4 has no device argument.
    if hasattr(torch.amp, 'is_autocast_available'):
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


def can_pack() -> bool:
    """Whether this torch has oneDNN and its operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


def packed_product(
    weight: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    gelu: bool = False,
) -> Product:
    """``linear`` with a weight packed now: returns a function (..., C) -> (..., D).

    Args:
        weight: (D, C) float32.
        bias: (D,), or None.
        dtype: of the factors: float32, bfloat16, or qint8, which scales weights per feature and
            inputs per tensor, by their largest values. Outputs have the dtype of the input.
        gelu: whether to apply GELU; fused into floating-point products.
    """
    if not can_pack() or dtype == torch.qint8:
        linear = _int8_product if can_pack() else _plain_product
        product = linear(weight, bias)
        return (lambda x: F.gelu(product(x))) if gelu else product
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), ROWS)
    bias = None if bias is None else bias.to(dtype)
    activation, algorithm = ('gelu', 'none') if gelu else ('none', '')

    def pointwise(x: Tensor) -> Tensor:
        out = torch.ops.mkldnn._linear_pointwise(
            x.to(dtype), packed, bias, activation, [], algorithm
        )
        return out.to(x.dtype)  # type: ignore[no-any-return]

    return pointwise


def _plain_product(weight: Tensor, bias: Tensor | None) -> Product:
    return lambda x: F.linear(x, weight, bias)


def _int8_product(weight: Tensor, bias: Tensor | None) -> Product:
    scales = weight.abs().amax(dim=1).double().div(127).clamp(min=torch.finfo(torch.float32).tiny)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    rounded = torch.quantize_per_channel(weight.contiguous(), scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def product(x: Tensor) -> Tensor:
        out = torch.ops.quantized.linear_dynamic(x.reshape(-1, x.shape[-1]), packed)
        return out.view(*x.shape[:-1], len(scales))  # type: ignore[no-any-return]

    return product


class PackedLinear(nn.Linear):
    """A linear layer with a packed weight, sharing the parameters of another.

    Where :func:`is_plain_inference` is False it is a plain one.

    Args:
        linear: its weight must not change afterwards.
        dtype: see :func:`packed_product`.

    Attributes:
        gelu: whether to apply GELU to the output.
    """

    gelu = False

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(1, 1, bias=False, device='meta')
        share_state(self, linear)
        self.dtype = dtype
        self.made = MadeOnce()

    def forward(self, x: Tensor) -> Tensor:
        if not is_plain_inference(x, self.weight, self.dtype):
            out = super().forward(x)
            return F.gelu(out) if self.gelu else out
        product = self.made.get_or_make(
            'product', lambda: packed_product(self.weight, self.bias, self.dtype, self.gelu)
        )
        return product(x)  # type: ignore[no-any-return]


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution as a matrix product, for channels-last maps.

    For others, and where :func:`is_plain_inference` is False, it is a plain one.

    Args:
        conv: shares its parameters; see :func:`is_pointwise`.
        dtype: see :func:`packed_product`.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(1, 1, 1, bias=False, device='meta')
        share_state(self, conv)
        self.dtype = dtype
        self.made = MadeOnce()

    def forward(self, x: Tensor) -> Tensor:
        plain = is_plain_inference(x, self.weight, self.dtype)
        if not plain or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        product = self.made.get_or_make(
            'product', lambda: packed_product(self.weight.flatten(1), self.bias, self.dtype)
        )
        return product(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is torch's, or mmcv's wrapper, which differs on empty batches only.

    Its weight must be a parameter: spectral normalisation recomputes it in every call.
    """
    known = type(layer) is kind or type(layer).__module__ == 'mmcv.cnn.bricks.wrappers'
    return known and isinstance(layer, kind) and 'weight' in dict(layer.named_parameters())


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer is a 1x1 convolution that :class:`PointwiseConv2d` supports."""
    if not isinstance(layer, nn.Conv2d) or not is_plain(layer, nn.Conv2d):
        return False
    shape = layer.kernel_size, layer.stride, layer.padding, layer.groups
    return shape == ((1, 1), (1, 1), (0, 0), 1)
