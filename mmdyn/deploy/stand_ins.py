"""Replacements for modules that a graph does not support or runs slowly.

Each computes the same from the same parameters. Pooling and patch merging are replaced for ONNX
also with a fixed size; with dynamic size, everything that is precomputed per size.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import PatchEmbed, PatchMerging
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmdyn.models import DynamicSwin, DynamicViT
from mmdyn.models.backbones.window_attention import MASKED, ShiftWindowMSA

Indices = tuple[Tensor, Tensor]


def rolled(length: int, by: int, device: torch.device) -> Tensor:
    """(length,) int64: (0 .. length-1) + ``by`` modulo ``length``, for |``by``| < ``length``."""
    # By comparison, as ONNX's translation of the remainder needs a known divisor.
    moved = torch.arange(length, device=device) + by
    if by < 0:
        return torch.where(moved < 0, moved + length, moved)
    return torch.where(moved >= length, moved - length, moved)


def ceil_div(length: int, by: int) -> int:
    """⌈length / by⌉, without negative numbers, which ONNX rounds towards 0."""
    return (length + by - 1) // by


class GatheredWindows(nn.Module):
    """Replaces a :class:`ShiftWindowMSA` in graphs of dynamic size, sharing its parameters.

    Its indices are computed in the graph; the original precomputes them per size.

    Args:
        attention: the original.
    """

    def __init__(self, attention: ShiftWindowMSA) -> None:
        super().__init__()
        self.w_msa = attention.w_msa
        self.window = attention.window_size
        self.shift = attention.shift_size

    def layout(self, x: Tensor, hw: tuple[int, int], shapes: None) -> tuple[Indices, Tensor | None]:
        """Compute the positions of locations in windows, for sizes that may be symbols.

        See :meth:`ShiftWindowMSA.layout`; graphs have no padding, so no ``shapes``.

        Returns:
            The location of each token of each window, (windows · window²) int64, H·W for padding,
            and the token of each location, (H·W) int64; the additive attention mask,
            (windows, 1, window², window²) float32, None without shift.
        """
        window, shift, device = self.window, self.shift, x.device
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
            # Rows and columns that the shift wrapped around are separate regions.
            region = ((y < shift) * 2 + (x < shift)).reshape(-1, window**2)
            apart = region[:, :, None] != region[:, None, :]
            mask = (apart.float() * MASKED).unsqueeze(1)
        return (source.flatten(), place.flatten()), mask

    def forward(self, x: Tensor, indices: Indices, mask: Tensor | None) -> Tensor:
        """See :meth:`ShiftWindowMSA.forward`."""
        batch, _, channels = x.shape
        source, place = indices
        length, heads = self.window**2, self.w_msa.num_heads
        qkv = self.w_msa.qkv(x)
        # Query, key and value of a padded token are the bias.
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


class ReshapedMerging(nn.Module):
    """mmcv's ``PatchMerging`` of non-overlapping patches, without ``Unfold``.

    ONNX has no ``Unfold``; as two gathers it took 3 to 4 % of a Swin's time.

    Args:
        merging: the original.
    """

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.stride = merging.sampler.stride
        self.norm = merging.norm or nn.Identity()
        self.reduction = merging.reduction

    def forward(self, x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """See mmcv's ``PatchMerging.forward``."""
        batch, _, channels = x.shape
        (height, width), (down, right) = hw, self.stride
        x = x.view(batch, height, width, channels)
        x = F.pad(x, (0, 0, 0, -width % right, 0, -height % down))
        hw = ceil_div(height, down), ceil_div(width, right)
        x = x.view(batch, hw[0], down, hw[1], right, channels).permute(0, 1, 3, 5, 2, 4)
        return self.reduction(self.norm(x.reshape(batch, hw[0] * hw[1], -1))), hw


class MatrixPooling(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products.

    ONNX has no such pooling: torch exports ``GatherND``, which many runtimes lack, for fixed sizes
    only.

    Args:
        pooling: the original.
    """

    def __init__(self, pooling: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        self.height, self.width = to_2tuple(pooling.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        rows = pooling_matrix(self.height, x.shape[2], x)
        return rows @ (x @ pooling_matrix(self.width, x.shape[3], x).transpose(0, 1))


def pooling_matrix(out: int, size: int, like: Tensor) -> Tensor:
    """(out, size): averages over the cells of adaptive pooling."""
    cell = torch.arange(out, device=like.device)[:, None]
    first, end = cell * size // out, ceil_div((cell + 1) * size, out)
    position = torch.arange(size, device=like.device)
    inside = (position >= first) & (position < end)
    return inside.to(like.dtype) / (end - first)


def vit_positions(backbone: DynamicViT, hw: tuple[int, int]) -> Tensor:
    """Like :meth:`DynamicViT.position_embedding`, but always resized."""
    old, prefix = backbone.pretrain_hw, backbone.prefix_tokens
    first, table = backbone.pos_embed.split([prefix, old[0] * old[1]], dim=1)
    table = table.transpose(1, 2).unflatten(2, old)
    table = F.interpolate(table, size=hw, mode=backbone.interpolate_mode, antialias=True)
    return torch.cat([first, table.flatten(2).transpose(1, 2)], dim=1)


def swin_positions(backbone: DynamicSwin, hw: tuple[int, int]) -> Tensor:
    """Like :meth:`DynamicSwin.position_embedding`, but always resized."""
    table = backbone.absolute_pos_embed.transpose(1, 2).unflatten(2, backbone.pretrain_hw)
    table = F.interpolate(table, size=hw, mode='bicubic', align_corners=False)
    return table.flatten(2).transpose(1, 2)


def replace_modules(model: nn.Module, any_size: bool) -> None:
    """Replace modules for export, in place.

    Args:
        model: has a ``backbone``.
        any_size: whether the graph will be of dynamic size; padding to whole patches is then
            omitted too, as the images' sides must be multiples of the strides.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, MatrixPooling(child))
            elif isinstance(child, PatchMerging):
                if child.sampler.kernel_size == child.sampler.stride:
                    setattr(module, name, ReshapedMerging(child))
            elif any_size and isinstance(child, ShiftWindowMSA):
                setattr(module, name, GatheredWindows(child))
            elif any_size and isinstance(child, PatchEmbed):
                child.adaptive_padding = None
    backbone = model.backbone
    # On the instance, overriding the class's method.
    for cls, positions in ((DynamicViT, vit_positions), (DynamicSwin, swin_positions)):
        if any_size and isinstance(backbone, cls):
            backbone.position_embedding = partial(positions, backbone)
