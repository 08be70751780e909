"""Shifted-window attention for traced graphs: windows gathered by index."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.models.backbones.window_attention import MASKED, ShiftWindowMSA

Indices = tuple[Tensor, Tensor]


def window_indices(
    hw: tuple[int, int], window: int, shift: int, device: torch.device
) -> tuple[Indices, Tensor | None]:
    """Work out which location lies where in the windows, from sizes that may be symbols.

    Args:
        hw: (H, W).
        window: side of a window.
        shift: how far windows are shifted, below ``window``.
        device: of the indices.

    Returns:
        The location of each token of each window, (windows · window²) int64, H·W for padding, and
        the token of each location, (H·W) int64; the mask to add to attention, (windows, 1,
        window², window²) float32, None without shift.
    """
    height, width = hw
    rows, cols = ceil_div(height, window), ceil_div(width, window)
    y = rolled(rows * window, shift, device).view(rows, 1, window, 1)
    x = rolled(cols * window, shift, device).view(1, cols, 1, window)
    source = torch.where((y < height) & (x < width), y * width + x, height * width)
    down = rolled(rows * window, -shift, device)[:height, None]
    right = rolled(cols * window, -shift, device)[None, :width]
    index = down // window * cols + right // window
    place = (index * window + down % window) * window + right % window
    mask = None
    if shift:
        # What the shift brought from the other side is a region of its own.
        region = ((y < shift) * 2 + (x < shift)).reshape(-1, window**2)
        apart = region[:, :, None] != region[:, None, :]
        mask = (apart.float() * MASKED).unsqueeze(1)
    return (source.flatten(), place.flatten()), mask


def rolled(length: int, by: int, device: torch.device) -> Tensor:
    """(length,) int64: (0 .. length-1) + ``by`` modulo ``length``; ``by`` is shorter."""
    # By comparison: ONNX's translation of a remainder wants to know the divisor.
    moved = torch.arange(length, device=device) + by
    if by < 0:
        return torch.where(moved < 0, moved + length, moved)
    return torch.where(moved >= length, moved - length, moved)


def ceil_div(length: int, by: int) -> int:
    """⌈length / by⌉, without the negative numbers that ONNX rounds towards 0."""
    return (length + by - 1) // by


class GatheredWindows(nn.Module):
    """Stands in for a :class:`ShiftWindowMSA`, with its parameters.

    One gather pads, shifts and cuts into windows, one undoes it. For a fixed size the
    indices are constants, which a runtime folds.

    Args:
        attention: what it stands in for.
    """

    def __init__(self, attention: ShiftWindowMSA) -> None:
        super().__init__()
        self.w_msa = attention.w_msa
        self.window = attention.window_size
        self.shift = attention.shift_size

    def layout(self, x: Tensor, hw: tuple[int, int], shapes: None) -> tuple[Indices, Tensor | None]:
        """See :meth:`ShiftWindowMSA.layout`; a graph sees no padding, so no ``shapes``."""
        return window_indices(hw, self.window, self.shift, x.device)

    def forward(self, x: Tensor, indices: Indices, mask: Tensor | None) -> Tensor:
        """See :meth:`ShiftWindowMSA.forward`."""
        batch, _, channels = x.shape
        source, place = indices
        length, heads = self.window**2, self.w_msa.num_heads
        qkv = self.w_msa.qkv(x)
        # A padded token's query, key and value are the bias.
        bias = self.w_msa.qkv.bias
        padding = x.new_zeros(3 * channels) if bias is None else bias
        qkv = torch.cat([qkv, padding.expand(batch, 1, -1)], dim=1).index_select(1, source)
        logits = self.w_msa.bias()
        if mask is not None:
            logits = (logits + mask).repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(
            *qkv.view(-1, length, 3, heads, channels // heads).permute(2, 0, 3, 1, 4),
            attn_mask=logits,
            scale=self.w_msa.scale,
        )
        out = out.transpose(1, 2).reshape(batch, -1, channels)
        return self.w_msa.proj(out.index_select(1, place))
