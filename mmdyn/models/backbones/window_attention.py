"""Shifted-window attention with the hosts' parameters and values (Liu et al., 2021).

Cheaper than ``ShiftWindowMSA`` of mmseg and mmdet: query, key and value are projected before the
map is padded to whole windows (those of a padded token are the bias); padding, shift and window
partition are one gather, the reverse another, with indices cached per size; attention runs through
scaled_dot_product_attention, and only windows of shifted parts get masks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmdyn.sparsity.compiling import length_of, made_once, takes_gradient

# The hosts' additive mask between regions that only the cyclic shift made neighbours.
MASKED = -100.0

FEW_WINDOWS = 32
"""With at most this many windows in a batch all get masks: cheaper than a second attention call."""


def relative_position_index(window: int) -> Tensor:
    """(window², window²) int64: row of the bias table for each pair of positions."""
    rows, cols = torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')
    rows, cols = rows.flatten(), cols.flatten()
    row_offset = rows[:, None] - rows[None, :] + window - 1
    col_offset = cols[:, None] - cols[None, :] + window - 1
    return row_offset * (2 * window - 1) + col_offset


class Gather(NamedTuple):
    """Row indices, (R,) int64, and the positions in them (int64) that stay empty."""

    index: Tensor
    empty: Tensor


class WindowLayout(NamedTuple):
    """Mapping between the locations of a batch of maps and the slots of its windows.

    Windows that need no mask come first, across images. With at most ``FEW_WINDOWS`` windows they
    are treated like the others, so that one attention call suffices.

    Attributes:
        slots: location of each of the window² slots of each window; padding is empty.
        locations: slot of each of the B · H · W locations; padding is empty.
        whole: number of leading windows that need no mask.
        kinds: (windows - whole,) int64, index into :func:`shift_masks` for the others.
        joined: whether any window needs a mask.
    """

    slots: Gather
    locations: Gather
    whole: int
    kinds: Tensor
    joined: bool


# Enough for some batch shapes in training, each with two layouts per stage.
@made_once(maxsize=64)
def window_layout(
    shapes: tuple[tuple[int, int], ...],
    hw: tuple[int, int],
    window: int,
    shift: int,
    device: torch.device,
    shift_one_window: bool = True,
) -> WindowLayout:
    """Partition maps into windows as the hosts do: padded at the bottom and right, then rolled.

    Args:
        shapes: unpadded (h, w) of each image's map, at the top left.
        hw: (H, W) of the batch's maps.
        window, shift: side of a window and its shift, 0 to ``window - 1``.
        device: of the indices.
        shift_one_window: whether the window of an image that fits one is shifted.
    """
    cut = {
        shape: _cut(shape, hw[1], window, shift if shift_one_window or min(shape) > window else 0)
        for shape in set(shapes)
    }
    places, reals, kinds = zip(*(cut[shape] for shape in shapes), strict=True)
    kind = np.concatenate(kinds)
    order = np.argsort(kind, kind='stable')
    area = hw[0] * hw[1]
    location = np.concatenate([place + i * area for i, place in enumerate(places)])[order].flatten()
    real = np.concatenate(reals)[order].flatten()
    slot = np.full(len(shapes) * area, -1)
    slot[location[real]] = np.flatnonzero(real)
    outside = slot < 0
    slots, locations = (
        Gather(*(torch.as_tensor(part, device=device) for part in parts))
        for parts in (
            (location, np.flatnonzero(~real)),
            (np.where(outside, 0, slot), np.flatnonzero(outside)),
        )
    )
    kind = np.sort(kind)
    whole = int((kind == 0).sum()) if len(kind) > FEW_WINDOWS else 0
    kinds = torch.as_tensor(kind[whole:], device=device)
    return WindowLayout(slots, locations, whole, kinds, bool(kind.any()))


def _cut(
    shape: tuple[int, int], width: int, window: int, shift: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of one image: locations in rows of ``width``, which of them are real, and kinds."""
    rows, columns = (-(-side // window) for side in shape)
    # (windows, window): source coordinate of each slot along one side.
    y, x = (
        (np.arange(count * window) + shift).reshape(count, window) % (count * window)
        for count in (rows, columns)
    )
    y, x = y[:, None, :, None], x[None, :, None, :]
    real = (y < shape[0]) & (x < shape[1])
    place = np.where(real, y * width + x, 0)
    # The shift wraps around in the last row and column of windows only.
    last_row, last_column = (np.arange(count) == count - 1 for count in (rows, columns))
    kind = (2 * last_row[:, None] + last_column[None, :]) * (shift > 0)
    return place.reshape(rows * columns, -1), real.reshape(rows * columns, -1), kind.flatten()


@made_once(maxsize=8)
def shift_masks(window: int, shift: int, device: torch.device) -> Tensor:
    """Additive masks between regions that a cyclic shift of 1 to ``window - 1`` joined.

    (4, 1, window², window²) float32 of 0 and ``MASKED``: for windows that are whole, joined
    left-right, joined top-bottom, joined both ways.
    """
    part = np.arange(window) >= window - shift
    rows, columns = np.repeat(part, window), np.tile(part, window)
    two_rows, two_columns = (p[:, None] != p[None, :] for p in (rows, columns))
    apart = np.stack([two_rows & False, two_columns, two_rows, two_rows | two_columns])
    return torch.as_tensor(np.where(apart, MASKED, 0.0)[:, None], device=device).float()


def gather(x: Tensor, there: Gather, back: Gather, fill: Tensor | None = None) -> Tensor:
    """Gather rows: (R, D) -> (R', D), with ``fill`` (D,), None = 0, in the empty positions.

    The gradient is the gather ``back``, faster than that of ``index_select``, which adds rows.
    """
    if takes_gradient():
        return _Gather.apply(x, *there, *back, fill)
    return _gather(x, *there, fill)


def _gather(x: Tensor, index: Tensor, empty: Tensor, fill: Tensor | None) -> Tensor:
    x = x.index_select(0, index)
    if not length_of(empty):
        return x
    if fill is None:
        return x.index_fill_(0, empty, 0.0)
    return x.index_copy_(0, empty, fill.expand(empty.shape[0], -1))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        index: Tensor,
        empty: Tensor,
        back: Tensor,
        left: Tensor,
        fill: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(empty, back, left)
        return _gather(x, index, empty, fill)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        empty, back, left = ctx.saved_tensors
        fill = grad.index_select(0, empty).sum(dim=0) if ctx.needs_input_grad[5] else None
        return _gather(grad, back, left, None), None, None, None, None, fill


class WindowMSA(BaseModule):
    """Multi-head self-attention within windows, with relative position bias.

    Args:
        embed_dims, num_heads: C and the number of heads, which must divide it.
        window: side of a window.
        qkv_bias: whether query, key and value have a bias.
        qk_scale: factor on the query; None = (C / heads) ** -0.5.
        attn_drop_rate: dropout of the attention weights.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide embed_dims={embed_dims}')
        self.num_heads = num_heads
        self.head_dims = embed_dims // num_heads
        self.scale = qk_scale or self.head_dims**-0.5
        self.attn_drop_rate = attn_drop_rate
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        self.register_buffer('relative_position_index', relative_position_index(window))
        self.qkv = nn.Linear(embed_dims, embed_dims * 3, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Determined by the window; converted checkpoints lack it.
        index = self.relative_position_index
        state_dict.setdefault(f'{prefix}relative_position_index', index)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def bias(self) -> Tensor:
        """Relative position bias of the attention logits, (1, heads, window², window²)."""
        length = self.relative_position_index.shape[0]
        places = self.relative_position_index.flatten()
        table = self.relative_position_bias_table.index_select(0, places)
        return table.view(1, length, length, -1).permute(0, 3, 1, 2)

    def attend(self, qkv: Tensor, layout: WindowLayout, masks: Tensor | None) -> Tensor:
        """Attend within windows: (S, 3C) projections -> (S, C), before the output projection.

        ``masks`` as from :func:`shift_masks`; None = no window needs one.
        """
        bias = self.bias()
        if masks is None:
            return self._attend(qkv, bias)
        rows = layout.whole * bias.shape[-1]
        mixed = self._attend(qkv[rows:], (bias + masks).index_select(0, layout.kinds))
        return torch.cat([self._attend(qkv[:rows], bias), mixed]) if layout.whole else mixed

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        parts = qkv.view(-1, bias.shape[-1], 3, self.num_heads, self.head_dims)
        out = F.scaled_dot_product_attention(
            *parts.permute(2, 0, 3, 1, 4).unbind(),
            attn_mask=bias.to(qkv.dtype),
            dropout_p=self.attn_drop_rate if self.training else 0.0,
            scale=self.scale,
        )
        return out.transpose(1, 2).reshape(-1, self.num_heads * self.head_dims)


class ShiftWindowMSA(BaseModule):
    """:class:`WindowMSA` over the (shifted) windows of a map; takes the same arguments.

    With ``shift_one_window=False`` the window of an image that fits one is not shifted.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int,
        shift_size: int = 0,
        proj_drop_rate: float = 0.0,
        shift_one_window: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.shift_one_window = shift_one_window
        self.window_size, self.shift_size = window_size, shift_size
        self.w_msa = WindowMSA(embed_dims, num_heads, window_size, **kwargs)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def layout(
        self, x: Tensor, hw: tuple[int, int], shapes: tuple[tuple[int, int], ...] | None
    ) -> tuple[WindowLayout, Tensor | None]:
        """Window layout and masks of (B, H · W, C) maps, cached by size.

        ``shapes``: unpadded (h, w) of each image's map; None = no padding.
        """
        window, shift = self.window_size, self.shift_size
        shapes = shapes or (tuple(hw),) * length_of(x)
        layout = window_layout(shapes, tuple(hw), window, shift, x.device, self.shift_one_window)
        return layout, shift_masks(window, shift, x.device) if layout.joined else None

    def forward(self, x: Tensor, layout: WindowLayout, masks: Tensor | None) -> Tensor:
        """Mix the locations of (B, N, C), normalised, within the windows of a :meth:`layout`."""
        qkv = self.w_msa.qkv(x.flatten(0, 1))
        bias = self.w_msa.qkv.bias
        # The projection of a padded (zero) token is the bias.
        fill = qkv.new_zeros(qkv.shape[1]) if bias is None else bias.to(qkv.dtype)
        slots, locations = layout.slots, layout.locations
        out = self.w_msa.attend(gather(qkv, slots, locations, fill), layout, masks)
        return self.proj_drop(self.w_msa.proj(gather(out, locations, slots))).view_as(x)
