"""Stand-ins for what a traced graph of any image size can't hold as it is.

Each computes what it replaces, from the same parameters, without branches on the size and without
caches.
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
from mmdyn.sparsity import Decision
from mmdyn.sparsity.policy import Site

Indices = tuple[Tensor, Tensor]


def kept_of(locations: int, keep_ratio: float) -> int:
    """:func:`mmdyn.sparsity.decision.keep_count`, for a number that may be symbolic too."""
    return torch.sym_max(1, torch.sym_int(locations * keep_ratio))


class RankedPolicy:
    """:class:`mmdyn.sparsity.TopKPolicy` for a traced graph, without padding.

    A :class:`Decision` counts what its mask keeps, a number that a graph holds only as an unknown.
    Here its indices are cut from a ranking instead: ⌊N·ratio⌋ of them, which follows from N alone.
    """

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        """See :class:`mmdyn.sparsity.Policy`."""
        scores = log_probs[..., 0]
        if site.keep_ratio >= 1:
            decision = Decision(scores, torch.ones_like(scores), site.keep_ratio, site.hw)
            vars(decision).update(all_slow=True)
            return decision
        ranking = scores
        if site.candidates is not None:
            ranking = scores.masked_fill(site.candidates == 0, float('-inf'))
        # Stable: as in the policy, the lower of two equal ones comes first.
        order = ranking.argsort(dim=1, descending=True, stable=True)
        batch, locations = order.shape
        count = kept_of(locations, site.keep_ratio)
        flat = order + torch.arange(batch, device=order.device)[:, None] * locations
        keep_mask = torch.zeros_like(scores).scatter(1, order[:, :count], 1.0)
        decision = Decision(scores, keep_mask, site.keep_ratio, site.hw)
        # In the place of its cached properties, which are then never worked out.
        vars(decision).update(
            keep_idx=flat[:, :count].flatten(),
            drop_idx=flat[:, count:].flatten(),
            all_slow=False,
            slow_first=(order, count, count),
        )
        return decision


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
        """Work out which location lies where in the windows, from sizes that may be symbols.

        See :meth:`ShiftWindowMSA.layout`; a graph sees no padding, so no ``shapes``.

        Returns:
            The location of each token of each window, (windows · window²) int64, H·W for
            padding, and the token of each location, (H·W) int64; the mask to add to attention,
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
            # What the shift brought from the other side is a region of its own.
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


class ReshapedMerging(nn.Module):
    """mmcv's ``PatchMerging`` of patches that lie side by side, without ``Unfold``.

    Args:
        merging: what it stands in for.
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


class NoScores(nn.Module):
    """Stands in for a predictor where everything is kept: a graph would compute its scores."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :meth:`mmdyn.sparsity.ScorePredictor.forward`; all equal."""
        return x.new_zeros(*x.shape[:2], 2)


class MatrixPooling(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products; ONNX has no such pooling.

    Args:
        pooling: what it stands in for.
    """

    def __init__(self, pooling: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        self.height, self.width = to_2tuple(pooling.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        rows = pooling_matrix(self.height, x.shape[2], x)
        return rows @ (x @ pooling_matrix(self.width, x.shape[3], x).transpose(0, 1))


def pooling_matrix(out: int, size: int, like: Tensor) -> Tensor:
    """(out, size): each row the mean over one cell of an adaptive pooling."""
    cell = torch.arange(out, device=like.device)[:, None]
    first, end = cell * size // out, ceil_div((cell + 1) * size, out)
    position = torch.arange(size, device=like.device)
    inside = (position >= first) & (position < end)
    return inside.to(like.dtype) / (end - first)


def resampling_matrix(out: int, size: int, mode: str, like: Tensor) -> Tensor:
    """(out, size): torch's anti-aliased ``'bicubic'`` or ``'bilinear'`` interpolation of a side."""
    step = torch.full((), size, dtype=torch.float64, device=like.device) / out
    # Shrinking widens the filter, so that every source location has its say.
    width = step.clamp(min=1)
    target, source = (torch.arange(n, device=like.device) + 0.5 for n in (out, size))
    distance = ((source - target[:, None] * step) / width).abs()
    if mode == 'bicubic':  # Keys' kernel with a = -0.5
        near = (1.5 * distance - 2.5) * distance * distance + 1
        far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, far) * (distance < 2)
    else:
        weights = (1 - distance).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)


def vit_positions(backbone: DynamicViT, hw: tuple[int, int]) -> Tensor:
    """See :meth:`DynamicViT.position_embedding`; resized whatever the size."""
    old, prefix = backbone.pretrain_hw, backbone.prefix_tokens
    first, table = backbone.pos_embed[0].split([prefix, old[0] * old[1]])
    rows, cols = (
        resampling_matrix(new, size, backbone.interpolate_mode, table)
        for new, size in zip(hw, old, strict=True)
    )
    table = (rows @ table.view(old[0], -1)).view(hw[0], old[1], -1)
    table = (cols @ table).reshape(hw[0] * hw[1], -1)
    return torch.cat([first, table]).unsqueeze(0)


def swin_positions(backbone: DynamicSwin, hw: tuple[int, int]) -> Tensor:
    """See :meth:`DynamicSwin.position_embedding`; resized whatever the size."""
    table = backbone.absolute_pos_embed.transpose(1, 2).unflatten(2, backbone.pretrain_hw)
    table = F.interpolate(table, size=hw, mode='bicubic', align_corners=False)
    return table.flatten(2).transpose(1, 2)


def replace_modules(model: nn.Module, any_size: bool) -> None:
    """Put the stand-ins into a model, in place.

    Args:
        model: has a ``backbone``.
        any_size: also leave out the padding to whole patches; the images' sides must then
            be multiples of the strides.
    """
    for module in list(model.modules()):
        if any_size and isinstance(module, PatchEmbed):
            module.adaptive_padding = None
        for name, child in list(module.named_children()):
            if isinstance(child, ShiftWindowMSA):
                setattr(module, name, GatheredWindows(child))
            elif isinstance(child, PatchMerging):
                if child.sampler.kernel_size == child.sampler.stride:
                    setattr(module, name, ReshapedMerging(child))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, MatrixPooling(child))
    backbone = model.backbone
    for k, ratio in enumerate(backbone.keep_ratios):
        if ratio == 1:
            backbone.predictors[k] = NoScores()
    # On the instance, where it comes before the class's method.
    for cls, positions in ((DynamicViT, vit_positions), (DynamicSwin, swin_positions)):
        if isinstance(backbone, cls):
            backbone.position_embedding = partial(positions, backbone)
