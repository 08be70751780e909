"""Plain Vision Transformer that drops tokens and still returns whole maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import ModuleList
from mmengine.model.weight_init import initialize, trunc_normal_
from mmengine.utils import to_2tuple
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmdyn.converters.vit import openmmlab_to_timm
from mmdyn.models.backbones.arguments import check_out_indices, check_stage, rising_drop_path
from mmdyn.models.backbones.base import (
    Batch,
    DynamicBackbone,
    FastPath,
    freeze,
    maybe_checkpoint,
)
from mmdyn.models.backbones.conv_stem import ConvStem
from mmdyn.models.backbones.maps import Padding, hide, positions, to_map
from mmdyn.models.weights import pretrained_init_cfg
from mmdyn.registry import MODELS
from mmdyn.sparsity import Decision, Policy
from mmdyn.sparsity.routing import Execution
from mmdyn.sparsity.tokens import Tokens, marked_tokens, masked_attention, split_tokens

# Arguments of mmseg's VisionTransformer that are supported with one value only.
HOST_ARGUMENTS = dict(
    patch_pad='corner',
    out_origin=False,
    output_cls_token=False,
    pre_norm=False,
    num_fcs=2,
    norm_eval=False,
    frozen_exclude=['all'],
)

# Log-probabilities of (keep, drop) of tokens dropped before, which can't be kept any more.
_DROPPED = (-10.0, 0.0)


def check_host_arguments(arguments: dict[str, Any]) -> None:
    """Refuse unsupported values (ValueError) and unknown arguments (TypeError)."""
    for name, value in arguments.items():
        if name not in HOST_ARGUMENTS:
            raise TypeError(f'DynamicViT has no argument {name!r} (got {value!r}); remove it')
        if value != HOST_ARGUMENTS[name]:
            heads = ', with a decode head that reads maps only' * (name == 'output_cls_token')
            raise ValueError(
                f'DynamicViT supports {name}={HOST_ARGUMENTS[name]!r} only, got {value!r}; '
                f'remove it{heads}'
            )


def default_sparse_blocks(depth: int) -> tuple[int, int, int]:
    """Predictor positions: quarters of ``depth`` blocks, (3, 6, 9) of 12."""
    return (depth // 4, depth // 2, 3 * depth // 4)


def default_out_indices(depth: int) -> tuple[int, ...]:
    """The last block of each quarter of ``depth`` blocks, (2, 5, 8, 11) of 12."""
    return tuple(sorted({max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)}))


class DynamicViTBlock(Block):
    """timm's ViT block with a mask of kept tokens; dropped ones may take a fast path."""

    # Without drop_path: its rate differs between blocks, so each would be compiled separately.
    compiled_regions = ('attend', 'slow_path')

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        norm_layer: Callable[..., nn.Module],
        with_fast_path: bool,
        skip_lam: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dims, num_heads, norm_layer=norm_layer, **kwargs)
        self.fast_path = FastPath(embed_dims, norm_layer(embed_dims)) if with_fast_path else None
        self.skip_lam = skip_lam

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Update the tokens of (B, L, C) that ``keep`` marks, (B, L) float of 0 and 1; None = all.

        The others keep their state or take the fast path.
        """
        if keep is None:
            x = x + self.drop_path1(self.attend(x))
            return x + self.drop_path2(self.slow_path(x))
        mask = keep.unsqueeze(-1).to(x.dtype)
        x = x + self.drop_path1(mask * self.attend(x, keep))
        update = mask * self.slow_path(x)
        if self.fast_path is not None:
            update = update + (1 - mask) * self.fast_path(x)
        return x + self.drop_path2(update)

    def attend(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Attention update of (B, L, C), with the kept tokens as keys."""
        x, layers = self.norm1(x), self.attn
        if keep is None:
            return self._divided(layers(x))
        # timm's forward with masked attention.
        qkv = layers.qkv(x).unflatten(-1, (3, layers.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout_p = layers.attn_drop.p if layers.training else 0.0
        out = masked_attention(*qkv, keep, dropout_p)
        return self._divided(layers.proj_drop(layers.proj(out.transpose(1, 2).flatten(2))))

    def slow_path(self, x: Tensor) -> Tensor:
        """Update of (..., C) by the pretrained MLP."""
        return self._divided(self.mlp(self.norm2(x)))

    def _divided(self, update: Tensor) -> Tensor:
        """Divide the update of a residual by ``skip_lam``."""
        return update if self.skip_lam == 1 else update / self.skip_lam

    def update_rest(self, rest: Tensor | None) -> Tensor | None:
        """Update the (B, R, C) dropped tokens of gathered execution."""
        if rest is None or self.fast_path is None:
            return rest
        return rest + self.drop_path2(self.fast_path(rest))


@MODELS.register_module()
class DynamicViT(DynamicBackbone):
    """Plain Vision Transformer (ViT, DeiT, LV-ViT) with dynamic token dropping.

    Takes the arguments of mmseg's ``VisionTransformer`` where they apply, and loads state dicts of
    timm and mmseg, pretrained at any square size. With every keep ratio at 1 it computes the same
    as timm's, and as mmseg's at the pretraining size (mmseg resizes the position embedding
    differently). Follows Rao et al. (arXiv 2106.02034, 2207.01580): a dropped token leaves
    attention and MLP for good, and each predictor chooses among the tokens kept so far. For dense
    prediction the last state of a dropped token stays in all later maps. The class token is never
    dropped. In gathered execution a predictor scores the tokens kept so far; the others get a
    probability of nearly 0.

    All maps have the stride of the patches; a neck such as mmseg's ``MultiLevelNeck`` or
    :class:`mmdyn.models.necks.SimpleFeaturePyramid` makes a pyramid of them. Inputs may have any
    size: they are padded to whole patches at the right and bottom, and the position embedding is
    resized as in timm.

    Args:
        img_size: input size of the position embedding; an int or (h, w) in pixels.
        patch_size: side of a patch in pixels.
        in_channels, embed_dims: channels of the images; C.
        num_layers, num_heads: number of blocks; attention heads of each.
        mlp_ratio: hidden width of the MLPs over C.
        out_indices: blocks after which a map is returned, one index or several, negative from the
            last; None = the last of each quarter, (2, 5, 8, 11) of 12.
        qkv_bias: whether query, key and value have a bias.
        drop_rate, attn_drop_rate: dropout of embeddings, projections and MLPs; of attention
            weights.
        drop_path_rate: stochastic depth of the last block, rising from 0.
        with_cls_token: whether there is a class token.
        norm_cfg, act_cfg: normalisation layers, and activation of the MLPs.
        stem_channels: width of LV-ViT's convolutions before the patches, 64 there; None = patches
            of the image itself.
        skip_lam: divisor of the updates by attention and MLP; 2 in LV-ViT.
        patch_norm, patch_bias: whether the patch embedding has a norm; a bias (timm's has). Not
            with ``stem_channels``.
        final_norm: whether the last block's map is normalised; the others never are.
        interpolate_mode: resizing of the position embedding, ``'bicubic'`` or ``'bilinear'``.
        with_cp: recompute blocks in the backward pass to save memory.
        frozen_stages: freeze the embeddings (0) and this many blocks; -1 freezes nothing.
        pretrained, init_cfg: a checkpoint, or ``dict(type='Pretrained', checkpoint=…)``.
        keep_ratios: fraction of all locations that each predictor keeps, in (0, 1],
            non-increasing.
        sparse_blocks: block before which each predictor decides; None = at the quarters,
            (3, 6, 9) of 12.
        policy: evaluation policy, an instance or a config; None = top-k.
        fast_path: whether dropped tokens get a cheap update (LayerNorm, Linear) in each block
            instead of keeping their state.
        **host_arguments: mmseg's others, with the values in ``HOST_ARGUMENTS``.

    Raises:
        TypeError, ValueError: on an invalid argument; the message names value and remedy.
    """

    decisions_shrink = True
    keep_ratio_ladder = 'geometric'

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dims: int = 768,
        out_indices: int | Sequence[int] | None = None,
        in_channels: int = 3,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cls_token: bool = True,
        norm_cfg: dict = dict(type='LN', eps=1e-6),  # noqa: B006, the host's signature; only read
        act_cfg: dict = dict(type='GELU'),  # noqa: B006
        patch_norm: bool = False,
        patch_bias: bool = True,
        final_norm: bool = False,
        interpolate_mode: str = 'bicubic',
        with_cp: bool = False,
        frozen_stages: int = -1,
        pretrained: str | None = None,
        init_cfg: dict | None = None,
        keep_ratios: Sequence[float] = (0.7, 0.49, 0.343),
        sparse_blocks: Sequence[int] | None = None,
        policy: Policy | dict | None = None,
        fast_path: bool = False,
        stem_channels: int | None = None,
        skip_lam: float = 1.0,
        **host_arguments: Any,
    ) -> None:
        check_host_arguments(host_arguments)
        super().__init__(init_cfg=pretrained_init_cfg(pretrained, init_cfg))
        if num_heads < 1 or embed_dims % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide embed_dims={embed_dims}')
        if interpolate_mode not in ('bicubic', 'bilinear'):
            raise ValueError(
                f"interpolate_mode must be 'bicubic' or 'bilinear', got {interpolate_mode!r}"
            )
        if not skip_lam > 0:
            raise ValueError(f'skip_lam must be positive, got {skip_lam}')
        if stem_channels is not None and (patch_norm or not patch_bias):
            raise ValueError('stem_channels needs patch_norm=False and patch_bias=True')
        if out_indices is None:
            out_indices = default_out_indices(num_layers)
        self.out_indices = check_out_indices(out_indices, num_layers)
        self.frozen_stages = check_stage('frozen_stages', frozen_stages, -1, num_layers)
        self.with_cp = with_cp
        self.interpolate_mode = interpolate_mode
        self.num_features = embed_dims
        self.pretrain_hw = tuple(side // patch_size for side in to_2tuple(img_size))
        if min(self.pretrain_hw) < 1:
            raise ValueError(f'img_size={img_size} is smaller than patch_size={patch_size}')
        if sparse_blocks is None:
            sparse_blocks = default_sparse_blocks(num_layers)
        self.build_sparsity(
            channels=embed_dims,
            depth=num_layers,
            stride=patch_size,
            keep_ratios=keep_ratios,
            sparse_blocks=sparse_blocks,
            policy=policy,
        )
        if self.sparse_blocks[-1] > max(self.out_indices):
            raise ValueError(
                f'sparse_blocks {self.sparse_blocks} must lie before the last of out_indices '
                f'{self.out_indices}: later predictors affect no map and would never learn'
            )

        # timm passes further arguments, which differ between versions.
        def norm_layer(channels: int, **_: Any) -> nn.Module:
            return build_norm_layer(norm_cfg, channels)[1]

        if stem_channels is not None:
            self.patch_embed = ConvStem(in_channels, stem_channels, embed_dims, patch_size)
        else:
            self.patch_embed = PatchEmbed(
                img_size=None,
                patch_size=patch_size,
                in_chans=in_channels,
                embed_dim=embed_dims,
                norm_layer=norm_layer if patch_norm else None,
                output_fmt='NHWC',
                bias=patch_bias,
                dynamic_img_pad=True,
            )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims)) if with_cls_token else None
        locations = self.pretrain_hw[0] * self.pretrain_hw[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix_tokens + locations, embed_dims))
        self.drop_after_pos = nn.Dropout(drop_rate)
        drop_path_rates = rising_drop_path(drop_path_rate, num_layers).tolist()
        self.blocks = ModuleList(
            DynamicViTBlock(
                embed_dims,
                num_heads,
                norm_layer=norm_layer,
                act_layer=lambda: build_activation_layer(act_cfg),
                with_fast_path=fast_path and i >= self.sparse_blocks[0],
                skip_lam=skip_lam,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                proj_drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rates[i],
            )
            for i in range(num_layers)
        )
        # Without a map of the last block the norm would be unused and never learn.
        last = num_layers - 1 in self.out_indices
        self.norm = norm_layer(embed_dims) if final_norm and last else None
        # Already here, so that an optimizer or DDP built next sees what is frozen.
        freeze(self.frozen_modules())

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before those of the map (1 with a class token, else 0)."""
        return 0 if self.cls_token is None else 1

    def map_hw(self, image_hw: tuple[int, int], stage: int | None = None) -> tuple[int, int]:
        """Constant over blocks; rounded up to whole patches."""
        stride = self.sparse_stride
        return -(-image_hw[0] // stride), -(-image_hw[1] // stride)

    def forward_maps(
        self, batch: Batch, policy: Policy, execution: Execution
    ) -> tuple[list[Tensor], list[Decision]]:
        padding = self.padding(batch)
        hw = self.map_hw(batch.hw)
        x = self.embed(batch.images, hw, padding)
        tokens = Tokens(x) if padding is None else marked_tokens(x, (~padding.mask).float())
        maps: list[Tensor] = []
        decisions: list[Decision] = []
        decision = None
        for i in range(max(self.out_indices) + 1):
            block = self.blocks[i]
            if i in self.sparse_blocks:
                x = tokens.joined()
                locations, k = x[:, self.prefix_tokens :], len(decisions)
                scores = None if tokens.rest is None else self._score(k, tokens)
                decision = self.decide(k, locations, hw, batch, policy, decision, scores)
                decisions.append(decision)
                if padding is not None and decision.keep_ratio == 1:
                    # In gathered execution too: only padding is dropped.
                    tokens = marked_tokens(x, decision.keep_mask)
                else:
                    tokens = split_tokens(x, decision, execution)
            active = maybe_checkpoint(self.with_cp, block, tokens.active, tokens.keep)
            tokens = tokens.after(active, block.update_rest(tokens.rest))
            if i in self.out_indices:
                out = tokens.joined()
                if self.norm is not None and i == len(self.blocks) - 1:
                    out = self.norm(out)
                maps.append(to_map(hide(out[:, self.prefix_tokens :], padding), hw))
        if self.with_image_map:
            maps.append(to_map(out[:, :1] if self.prefix_tokens else out.mean(1, True), (1, 1)))
        return maps, decisions

    def _score(self, k: int, tokens: Tokens) -> Tensor:
        """(B, N, 2) log-probabilities of predictor ``k``, which reads the active tokens only."""
        prefix = self.prefix_tokens
        keep = None if tokens.keep is None else tokens.keep[:, prefix:]
        found = self.predictors[k](tokens.active[:, prefix:], keep)
        dropped = found.new_tensor(_DROPPED).expand(*tokens.rest.shape[:2], 2)
        whole = tokens.after(F.pad(found, (0, 0, prefix, 0)), dropped).joined()
        return whole[:, prefix:]

    def embed(self, images: Tensor, hw: tuple[int, int], padding: Padding | None) -> Tensor:
        """(B, C, h, w) images -> (B, L, C) tokens with positions, for a map of (H, W)."""
        if isinstance(self.patch_embed, ConvStem):
            x = self.patch_embed(images, hw, padding)
        else:
            x = self.patch_embed(images).flatten(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        places = positions(self.position_embedding, hw, padding, self.prefix_tokens)
        return self.drop_after_pos(x + places)

    def position_embedding(self, hw: tuple[int, int]) -> Tensor:
        """(1, L, C): position embedding, resized to a map of ``hw``."""
        if tuple(hw) == self.pretrain_hw:
            return self.pos_embed
        return self.resize_positions(self.pos_embed, self.pretrain_hw, hw)

    def resize_positions(self, table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
        """Resize a position embedding from a map of ``old`` (H, W) to ``new``, as timm does."""
        return resample_abs_pos_embed(
            table,
            new_size=list(new),
            old_size=list(old),
            num_prefix_tokens=self.prefix_tokens,
            interpolation=self.interpolate_mode,
        )

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        """The embeddings, and frozen blocks with their predictors."""
        if self.frozen_stages < 0:
            return
        yield self.patch_embed
        yield self.drop_after_pos
        yield self.pos_embed
        if self.cls_token is not None:
            yield self.cls_token
        yield from self.blocks[: self.frozen_stages]
        for position, predictor in zip(self.sparse_blocks, self.predictors, strict=True):
            if position < self.frozen_stages:
                yield predictor
        if self.norm is not None and self.frozen_stages == len(self.blocks):
            yield self.norm

    def reset_parameters(self) -> None:
        weights = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0)
        norms = dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0)
        initialize(self, [weights, norms])
        for table in (self.pos_embed, self.cls_token):
            if table is not None:
                trunc_normal_(table, std=0.02)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Not in the loading of init_cfg: load_from of a whole model also takes dense checkpoints,
        # and mmseg uses other names.
        state = {k: state_dict.pop(k) for k in list(state_dict) if k.startswith(prefix)}
        state = self.fit_state_dict({k.removeprefix(prefix): v for k, v in state.items()})
        state_dict.update({prefix + k: v for k, v in state.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fit_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a dense checkpoint of timm (same names) or mmseg, and resize its positions.

        Raises:
            ValueError: if the position embedding can't be resized.
        """
        state = openmmlab_to_timm(state)
        own = self.state_dict()
        if 'pos_embed' in state:
            state['pos_embed'] = self.fit_position_embedding(
                state['pos_embed'], prefix=int('cls_token' in state)
            )
        # mmseg's patch embedding has no bias by default, equal to a bias of 0.
        if 'patch_embed.proj.weight' in state and 'patch_embed.proj.bias' in own:
            state.setdefault('patch_embed.proj.bias', torch.zeros(self.num_features))
        # Keys of other outputs or of models with a class token.
        unused = ('fc_norm.', 'norm.', 'cls_token')
        return {k: v for k, v in state.items() if k in own or not k.startswith(unused)}

    def fit_position_embedding(self, table: Tensor, prefix: int) -> Tensor:
        """Resize a checkpoint's position embedding, (1, prefix + side², C), to this model.

        Raises:
            ValueError: if the table is not of a square map, or lacks this model's class token.
        """
        if table.dim() != 3 or table.shape[1] <= prefix:
            raise ValueError(
                f'pos_embed of shape {tuple(table.shape)} is not (1, locations, C): use the '
                'original file, unchanged'
            )
        side = round((table.shape[1] - prefix) ** 0.5)
        square, (height, width) = side**2 == table.shape[1] - prefix, self.pretrain_hw
        warn = partial(print_log, logger='current', level=logging.WARNING)
        if table.shape[1] == self.pos_embed.shape[1] and prefix == self.prefix_tokens:
            if square and height != side:
                warn(
                    f'pos_embed is assumed to have {height}x{width} locations, from img_size; if '
                    f'it was trained on {side}x{side}, set img_size={side * self.sparse_stride}'
                )
            return table
        if not square or prefix < self.prefix_tokens:
            raise ValueError(
                f'pos_embed of shape {tuple(table.shape)} with {prefix} class token(s) does not '
                f'fit a model with {self.prefix_tokens} and cannot be resized: set img_size and '
                'with_cls_token as in its training'
            )
        if (height, width) != (side, side):
            warn(
                f'pos_embed of {side}x{side} locations is resized to {height}x{width}, from '
                'img_size'
            )
        table = table[:, prefix - self.prefix_tokens :]
        return self.resize_positions(table, (side, side), (height, width))
