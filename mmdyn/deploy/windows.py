"""Shifted-window attention for traced graphs: windows gathered by index.

The layout of the windows comes from comparisons of positions, without branches on
the size and without a cache, so that one graph may serve every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.models.backbones.window_attention import MASKED, ShiftWindowMSA


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """How a map is cut into windows, as indices.

    Attributes:
        source: (windows · window²) int64, the location of each token; H·W for padding.
        place: (H·W) int64, the token of each location.
        mask: (windows, 1, window², window²) float32, see
            :func:`mmdyn.models.backbones.window_attention.shift_masks`; None without shift.
    """

    source: Tensor
    place: Tensor
    mask: Tensor | None


class MapSize(tuple):
    """(H, W) of a stage's map, with the window layouts that its blocks share."""

    def __init__(self, _: tuple[int, int]) -> None:
        self.layouts: dict[tuple[int, int], WindowLayout] = {}


def layout_of(hw: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowLayout:
    """The layout of a map of ``hw``, made once for each :class:`MapSize`."""
    layouts = hw.layouts if isinstance(hw, MapSize) else {}
    if (window, shift) not in layouts:
        layouts[window, shift] = make_layout(hw, window, shift, device)
    return layouts[window, shift]


def make_layout(hw: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowLayout:
    """Work out which token of which window is where.

    Args:
        hw: (H, W), numbers or symbols.
        window: side of a window.
        shift: how far windows are shifted, below ``window``.
        device: of the indices.
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
    return WindowLayout(source.flatten(), place.flatten(), mask)


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

    def layout(
        self, x: Tensor, hw: tuple[int, int], shapes: None
    ) -> tuple[WindowLayout, Tensor | None]:
        """See :meth:`ShiftWindowMSA.layout`; a graph sees no padding, so no ``shapes``."""
        layout = layout_of(hw, self.window, self.shift, x.device)
        return layout, layout.mask

    def forward(self, x: Tensor, layout: WindowLayout, mask: Tensor | None) -> Tensor:
        """See :meth:`ShiftWindowMSA.forward`."""
        batch, _, channels = x.shape
        length, heads = self.window**2, self.w_msa.num_heads
        qkv = self.w_msa.qkv(x)
        # A padded token's query, key and value are the bias.
        bias = self.w_msa.qkv.bias
        padding = x.new_zeros(3 * channels) if bias is None else bias
        qkv = torch.cat([qkv, padding.expand(batch, 1, -1)], dim=1).index_select(1, layout.source)
        logits = self.w_msa.bias()
        if mask is not None:
            logits = (logits + mask).repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(
            *qkv.view(-1, length, 3, heads, channels // heads).permute(2, 0, 3, 1, 4),
            attn_mask=logits,
            scale=self.w_msa.scale,
        )
        out = out.transpose(1, 2).reshape(batch, -1, channels)
        return self.w_msa.proj(out.index_select(1, layout.place))
