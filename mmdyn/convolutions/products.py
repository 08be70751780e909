"""Matrix products with weights that oneDNN lays out once, for inference on a CPU.

torch lays a weight out anew in every call, or reads it as it is; oneDNN's own operator, which
torch.compile uses for frozen models, takes one that is laid out already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.sparsity.compiling import is_traced

Product = Callable[[Tensor], Tensor]


class MadeOnce(dict[str, Any]):
    """What was made of a weight. A copy starts empty: what oneDNN lays out can't be copied."""

    def get_or_make(self, name: str, make: Callable[[], Any]) -> Any:
        """What has a name; made at first."""
        if name not in self:
            self[name] = make()
        return self[name]

    def __reduce__(self) -> tuple[type[MadeOnce], tuple[()]]:
        return MadeOnce, ()


ROWS = 1024
"""Rows that a weight is laid out for; others take it too."""


def is_plain_inference(x: Tensor, weight: Tensor) -> bool:
    """Whether values are all that is asked for: float32, on a CPU, no gradient, no graph."""
    return (
        not is_traced(x)
        and x.device.type == weight.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not _is_autocast()
    )


def _is_autocast() -> bool:
    # torch before 2.4 takes no device.
    if hasattr(torch.amp, 'is_autocast_available'):
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


def can_pack() -> bool:
    """Whether this torch has oneDNN and its operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


def packed_product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """``linear`` with a weight that is laid out now: a function (..., C) -> (..., D).

    Args:
        weight: (D, C) float32.
        bias: (D,), or None.
    """
    if not can_pack():
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)

    def product(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, 'none', [], '')  # type: ignore[no-any-return]

    return product


class PackedLinear(nn.Linear):
    """A linear layer with the parameters of another, whose weight is laid out once.

    Where :func:`is_plain_inference` does not hold it is a plain one.

    Args:
        linear: the other; its weight must not change afterwards.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(1, 1, bias=False, device='meta')
        self.__dict__.update(linear.__dict__)
        self.made = MadeOnce()

    def forward(self, x: Tensor) -> Tensor:
        if not is_plain_inference(x, self.weight):
            return super().forward(x)
        product = self.made.get_or_make('product', lambda: packed_product(self.weight, self.bias))
        return product(x)  # type: ignore[no-any-return]


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution as a product, where the map lies channels-last.

    Elsewhere, and where :func:`is_plain_inference` does not hold, it is a plain one.

    Args:
        conv: whose parameters it has; see :func:`is_pointwise`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(1, 1, 1, bias=False, device='meta')
        self.__dict__.update(conv.__dict__)
        self.made = MadeOnce()

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if not channels_last or not is_plain_inference(x, self.weight):
            return super().forward(x)
        weight = self.weight.flatten(1)
        product = self.made.get_or_make('product', lambda: packed_product(weight, self.bias))
        return product(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is torch's, or mmcv's that differs in what it does to empty batches only.

    Its weight is a parameter: spectral normalisation makes it of another one, in every call.
    """
    known = type(layer) is kind or type(layer).__module__ == 'mmcv.cnn.bricks.wrappers'
    return known and isinstance(layer, kind) and 'weight' in dict(layer.named_parameters())


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer is a 1x1 convolution that :class:`PointwiseConv2d` computes."""
    if not isinstance(layer, nn.Conv2d) or not is_plain(layer, nn.Conv2d):
        return False
    shape = layer.kernel_size, layer.stride, layer.padding, layer.groups
    return shape == ((1, 1), (1, 1), (0, 0), 1)
