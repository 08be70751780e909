"""Shifted-window attention with the hosts' parameters and values.

Computes what mmseg's and mmdet's ``ShiftWindowMSA`` compute (Liu et al., 2021),
with less work: query, key and value are projected before the map is padded to
whole windows (a padded token's are just the bias), the shift mask is made once
per size, and attention runs through scaled_dot_product_attention.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

# What the hosts add between regions that only the cyclic shift made neighbours.
MASKED = -100.0


def relative_position_index(window: int) -> Tensor:
    """(window², window²) int64: row of the bias table for each pair of positions."""
    rows, cols = torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')
    rows, cols = rows.flatten(), cols.flatten()
    row_offset = rows[:, None] - rows[None, :] + window - 1
    col_offset = cols[:, None] - cols[None, :] + window - 1
    return row_offset * (2 * window - 1) + col_offset


@lru_cache(maxsize=32)
def shift_mask(hw: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor:
    """Additive mask that separates regions a cyclic shift brought together.

    Args:
        hw: (H, W) of the padded map, multiples of ``window``.
        window: side of a window.
        shift: how far the map was rolled, below ``window``.
        device: where the mask lives.

    Returns:
        (windows, 1, window², window²) float32 of 0 and ``MASKED``.
    """

    def regions(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).long() + (position >= length - shift).long()

    # Made once for training and inference alike: an inference tensor in the
    # cache could not take part in a later backward pass.
    with torch.inference_mode(False):
        region = regions(hw[0])[:, None] * 3 + regions(hw[1])[None, :]
        region = partition(region[None, ..., None], window).squeeze(-1)
        apart = region[:, :, None] != region[:, None, :]
        return torch.zeros(apart.shape, device=device).masked_fill_(apart, MASKED).unsqueeze(1)


def own_windows_mask(hidden: Tensor, hw: tuple[int, int], window: int, shift: int) -> Tensor:
    """Additive mask that keeps shifted windows inside those which an image has by itself.

    Args:
        hidden: (B, H, W) bool, a batch's padding, at the bottom and the right.
        hw: (H, W) of the padded map, multiples of ``window``.
        window: side of a window.
        shift: how far the map is rolled, below ``window``.

    Returns:
        (B · windows, 1, 1, window²) float32 of 0 and ``MASKED``, over keys.
    """
    real = ~hidden
    beyond = torch.zeros(hidden.shape[0], *hw, dtype=torch.bool, device=hidden.device)
    for dim in (1, 2):
        # The image's own height or width, in whole windows.
        length = real.any(dim=3 - dim).sum(dim=1)
        own = (length + window - 1).div(window, rounding_mode='floor') * window
        position = torch.arange(hw[dim - 1], device=hidden.device)
        beyond = beyond | (position >= own[:, None]).unsqueeze(3 - dim)
    keys = partition(beyond.roll((-shift, -shift), dims=(1, 2)).unsqueeze(-1), window)
    return keys.transpose(1, 2).unsqueeze(1) * MASKED


def partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B · windows, window², C); H and W multiples of ``window``."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def unpartition(windows: Tensor, window: int, hw: tuple[int, int]) -> Tensor:
    """Undo :func:`partition`: (B · windows, window², C) -> (B, H, W, C)."""
    height, width = hw
    x = windows.view(
        -1, height // window, width // window, window, window, windows.shape[-1]
    ).transpose(2, 3)
    return x.reshape(-1, height, width, windows.shape[-1])


class WindowMSA(BaseModule):
    """Multi-head self-attention inside windows, with relative position bias.

    Args:
        embed_dims: C.
        num_heads: divides C.
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
        self.scale = qk_scale or (embed_dims // num_heads) ** -0.5
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
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return table.view(1, length, length, -1).permute(0, 3, 1, 2)

    def attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """Attend inside windows.

        Args:
            qkv: (B · windows, window², 3C) projections.
            mask: (windows, 1, window², window²) float to add, or None.

        Returns:
            (B · windows, window², C), before the output projection.
        """
        count, length, channels = qkv.shape
        query, key, value = qkv.view(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias()
        if mask is not None:
            bias = (bias + mask).repeat(count // mask.shape[0], 1, 1, 1)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.attn_drop_rate if self.training else 0.0,
            scale=self.scale,
        )
        return out.transpose(1, 2).reshape(count, length, channels // 3)


class ShiftWindowMSA(BaseModule):
    """:class:`WindowMSA` over a map, optionally on windows shifted by half.

    Args:
        embed_dims: C.
        num_heads: divides C.
        window_size: side of a window.
        shift_size: how far windows are shifted, below ``window_size``.
        qkv_bias, qk_scale, attn_drop_rate: see :class:`WindowMSA`.
        proj_drop_rate: dropout of the output.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int,
        shift_size: int = 0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.w_msa = WindowMSA(
            embed_dims, num_heads, window_size, qkv_bias, qk_scale, attn_drop_rate
        )
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: Tensor, hw: tuple[int, int], hidden: Tensor | None = None) -> Tensor:
        """Mix locations inside windows.

        Args:
            x: (B, N, C), normalised.
            hw: (H, W), ``H * W == N``, any size: padded to whole windows inside.
            hidden: (B, N) bool, a batch's padding, where ``x`` is 0; None = none. An image's
                windows are then those that it has by itself.

        Returns:
            (B, N, C).
        """
        batch, locations, channels = x.shape
        height, width = hw
        window, shift = self.window_size, self.shift_size
        padded = (-(-height // window) * window, -(-width // window) * window)

        qkv = self.w_msa.qkv(x).view(batch, height, width, 3 * channels)
        qkv = pad_map(qkv, padded, self.w_msa.qkv.bias)
        if shift:
            qkv = qkv.roll((-shift, -shift), dims=(1, 2))
        mask = shift_mask(padded, window, shift, x.device) if shift else None
        if mask is not None and hidden is not None:
            own = own_windows_mask(hidden.unflatten(1, hw), padded, window, shift)
            mask = mask.repeat(batch, 1, 1, 1) + own
        out = self.w_msa.attend(partition(qkv, window), mask)
        out = unpartition(out, window, padded)
        if shift:
            out = out.roll((shift, shift), dims=(1, 2))
        out = out[:, :height, :width].reshape(batch, locations, channels)
        return self.proj_drop(self.w_msa.proj(out))


def pad_map(x: Tensor, hw: tuple[int, int], value: Tensor | None) -> Tensor:
    """Extend (B, H, W, C) to ``hw`` at the bottom and the right.

    Args:
        x: (B, H, W, C).
        hw: target (H, W), not below the map's.
        value: (C,) to fill in; None = zeros.

    Returns:
        (B, *hw, C); ``x`` itself if nothing is to be padded.
    """
    batch, height, width, channels = x.shape
    if (height, width) == tuple(hw):
        return x
    if value is None:
        return F.pad(x, (0, 0, 0, hw[1] - width, 0, hw[0] - height))
    # Fill by broadcasting: gradient reaches the bias through the padded tokens, as in the hosts.
    below = value.to(x.dtype).expand(batch, hw[0] - height, hw[1], channels)
    right = value.to(x.dtype).expand(batch, height, hw[1] - width, channels)
    return torch.cat([torch.cat([x, right], dim=2), below], dim=1)
