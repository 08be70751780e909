"""1x1 convolutions that approximate 3x3 ones for the fast path."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def summed_taps(weight: Tensor) -> Tensor:
    """1x1 kernel that acts like a 3x3 one on a constant map: (D, C, 3, 3) -> (D, C, 1, 1)."""
    return weight.sum(dim=(2, 3), keepdim=True)


@torch.no_grad()
def start_from(fast: nn.Conv2d, dense: nn.Conv2d) -> None:
    """Initialise a 1x1 convolution to act like a 3x3 one on constant maps; biases must match."""
    fast.weight.copy_(summed_taps(dense.weight))
    if dense.bias is not None:
        fast.bias.copy_(dense.bias)  # type: ignore[union-attr]


def add_fast_path(state_dict: dict[str, Tensor], dense: str, fast: str) -> None:
    """Add a 1x1 convolution's weights to a dense model's state dict, unless it has them.

    Args:
        state_dict: changed in place.
        dense: name of the 3x3 convolution.
        fast: name of the 1x1 convolution.
    """
    weight = state_dict.get(f'{dense}.weight')
    # Anything but a kernel is refused when loading.
    if weight is not None and weight.dim() == 4 and f'{fast}.weight' not in state_dict:
        state_dict[f'{fast}.weight'] = summed_taps(weight)
        if f'{dense}.bias' in state_dict:
            state_dict[f'{fast}.bias'] = state_dict[f'{dense}.bias'].clone()


def check_plain(owner: str, name: str, layer: nn.Module) -> None:
    """Raise ValueError, with ``owner`` and ``name``, for all but a plain 3x3 convolution."""
    if type(layer) is not nn.Conv2d or layer.kernel_size != (3, 3):
        raise ValueError(
            f'{owner} needs a plain 3x3 convolution as {name}, got {layer}: remove conv_cfg and '
            'num_convs, or use the dense module'
        )
