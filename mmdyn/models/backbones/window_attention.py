"""Shifted-window attention with the hosts' parameters and values (Liu et al., 2021).

Less work than mmseg's and mmdet's ``ShiftWindowMSA``: query, key and value are projected before the
map is padded to whole windows (a padded token's are just the bias); padding, shift and cut are one
gather, the way back another, with indices made once per size; attention runs through
scaled_dot_product_attention, and only windows that the shift put together get masks.
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

# What the hosts add between regions that only the cyclic shift made neighbours.
MASKED = -100.0

FEW_WINDOWS = 32
"""Up to so many windows in a batch all have masks: cheaper than a second call of attention."""


def relative_position_index(window: int) -> Tensor:
    """(window², window²) int64: row of the bias table for each pair of positions."""
    rows, cols = torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')
    rows, cols = rows.flatten(), cols.flatten()
    row_offset = rows[:, None] - rows[None, :] + window - 1
    col_offset = cols[:, None] - cols[None, :] + window - 1
    return row_offset * (2 * window - 1) + col_offset


class Gather(NamedTuple):
    """An index of rows, (R,) int64, and the places in it (int64) that are left empty."""

    index: Tensor
    empty: Tensor


class WindowLayout(NamedTuple):
    """Where the locations of a batch of maps lie in windows, and back.

    Those windows that the cyclic shift left whole come first, whichever image they are from; where
    there are few windows they count among the others, which one call attends in.

    Attributes:
        slots: the location in each of the window² slots of a window; padding stays empty.
        locations: the slot of each of the B · H · W locations; a batch's padding stays empty.
        whole: how many windows come first that need no mask.
        kinds: (windows - whole,) int64, which of :func:`shift_masks` the others need.
    """

    slots: Gather
    locations: Gather
    whole: int
    kinds: Tensor


# Some sets of a training's batch shapes, each with two layouts for every stage.
@made_once(maxsize=64)
def window_layout(
    shapes: tuple[tuple[int, int], ...],
    hw: tuple[int, int],
    window: int,
    shift: int,
    device: torch.device,
) -> WindowLayout:
    """Cut maps into windows, as the hosts do: padded at the bottom and right, then rolled.

    Args:
        shapes: (h, w) of each image's own map, at the top left of the batch's.
        hw: (H, W) of the batch's maps.
        window, shift: side of a window, and how far it is shifted, 0 to ``window - 1``.
        device: where the indices live.
    """
    cut = {shape: _cut(shape, hw[1], window, shift) for shape in set(shapes)}
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
    return WindowLayout(slots, locations, whole, torch.as_tensor(kind[whole:], device=device))


def _cut(
    shape: tuple[int, int], width: int, window: int, shift: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image's windows: locations in rows of ``width``, which of them are real, and kinds."""
    rows, columns = (-(-side // window) for side in shape)
    # (windows, window): where along one side each slot of each window comes from.
    y, x = (
        (np.arange(count * window) + shift).reshape(count, window) % (count * window)
        for count in (rows, columns)
    )
    y, x = y[:, None, :, None], x[None, :, None, :]
    real = (y < shape[0]) & (x < shape[1])
    place = np.where(real, y * width + x, 0)
    # Only the last row and column of windows are put together from two sides.
    last_row, last_column = (np.arange(count) == count - 1 for count in (rows, columns))
    kind = (2 * last_row[:, None] + last_column[None, :]) * (shift > 0)
    return place.reshape(rows * columns, -1), real.reshape(rows * columns, -1), kind.flatten()


@made_once(maxsize=8)
def shift_masks(window: int, shift: int, device: torch.device) -> Tensor:
    """Additive masks that separate what a cyclic shift of 1 to ``window - 1`` brought together.

    (4, 1, window², window²) float32 of 0 and ``MASKED``: for windows that it left whole, put
    together from two sides, from top and bottom, from both.
    """
    part = np.arange(window) >= window - shift
    rows, columns = np.repeat(part, window), np.tile(part, window)
    two_rows, two_columns = (p[:, None] != p[None, :] for p in (rows, columns))
    apart = np.stack([two_rows & False, two_columns, two_rows, two_rows | two_columns])
    return torch.as_tensor(np.where(apart, MASKED, 0.0)[:, None], device=device).float()


def gather(x: Tensor, there: Gather, back: Gather, fill: Tensor | None = None) -> Tensor:
    """Gather rows: (R, D) -> (R', D), with ``fill`` (D,), None = 0, in the empty places.

    The gradient is the gather ``back`` (``index_select``'s own adds row by row).
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
    """Multi-head self-attention inside windows, with relative position bias.

    Args:
        embed_dims, num_heads: C, and heads, which divide it.
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

    def bias(self) -> Tensor:
        """(1, heads, window², window²), added to the attention logits."""
        length = self.relative_position_index.shape[0]
        places = self.relative_position_index.flatten()
        table = self.relative_position_bias_table.index_select(0, places)
        return table.view(1, length, length, -1).permute(0, 3, 1, 2)

    def attend(self, qkv: Tensor, layout: WindowLayout, masks: Tensor | None) -> Tensor:
        """Attend inside windows: (S, 3C) projections -> (S, C), before the output projection.

        ``masks`` is what :func:`shift_masks` makes; None = windows are not shifted.
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
    """A :class:`WindowMSA`, whose arguments it takes, over a map: windows may be shifted."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int,
        shift_size: int = 0,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.window_size, self.shift_size = window_size, shift_size
        self.w_msa = WindowMSA(embed_dims, num_heads, window_size, **kwargs)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def layout(
        self, x: Tensor, hw: tuple[int, int], shapes: tuple[tuple[int, int], ...] | None
    ) -> tuple[WindowLayout, Tensor | None]:
        """Where the windows of (B, H · W, C) maps lie, and their masks, made once for a size.

        ``shapes`` are (h, w) of each image's own map; None = all of it.
        """
        window, shift = self.window_size, self.shift_size
        shapes = shapes or (tuple(hw),) * length_of(x)
        layout = window_layout(shapes, tuple(hw), window, shift, x.device)
        return layout, shift_masks(window, shift, x.device) if shift else None

    def forward(self, x: Tensor, layout: WindowLayout, masks: Tensor | None) -> Tensor:
        """Mix the locations of (B, N, C), normalised, inside the windows of a :meth:`layout`."""
        qkv = self.w_msa.qkv(x.flatten(0, 1))
        bias = self.w_msa.qkv.bias
        # What the projection makes of a padded token; in the bias' place if it has none.
        fill = qkv.new_zeros(qkv.shape[1]) if bias is None else bias.to(qkv.dtype)
        slots, locations = layout.slots, layout.locations
        out = self.w_msa.attend(gather(qkv, slots, locations, fill), layout, masks)
        return self.proj_drop(self.w_msa.proj(gather(out, locations, slots))).view_as(x)
