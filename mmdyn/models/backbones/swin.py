"""Swin Transformer with one sparse stage."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.drop import build_dropout
from mmcv.cnn.bricks.transformer import FFN, PatchEmbed, PatchMerging
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import constant_init, trunc_normal_, trunc_normal_init
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmdyn.checks import check_integer
from mmdyn.converters.swin import window_of
from mmdyn.models.backbones.arguments import check_sizes, rising_drop_path
from mmdyn.models.backbones.base import FastPath, StageBlock, StagedBackbone, freeze
from mmdyn.models.backbones.maps import Padding, positions
from mmdyn.models.backbones.window_attention import (
    ShiftWindowMSA,
    WindowLayout,
    WindowMSA,
)
from mmdyn.models.weights import pretrained_init_cfg
from mmdyn.registry import MODELS
from mmdyn.sparsity import Policy


class DynamicSwinBlock(StageBlock):
    """A Swin block whose MLP can be replaced by a fast path per location.

    Takes the arguments of the hosts' ``SwinBlock``; ``sparse`` adds the fast path.
    """

    # Without drop_path: its rate differs between blocks, so each would be compiled separately.
    compiled_regions = ('attend', 'slow_path')

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        *,
        window_size: int,
        shift: bool,
        sparse: bool,
        drop_rate: float,
        drop_path_rate: float,
        act_cfg: dict,
        norm_cfg: dict,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        shift_size = window_size // 2 if shift else 0
        self.attn = ShiftWindowMSA(
            embed_dims, num_heads, window_size, shift_size, drop_rate, **attention
        )
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = FFN(
            embed_dims,
            feedforward_channels,
            act_cfg=act_cfg,
            ffn_drop=drop_rate,
            add_identity=False,
        )
        self.drop_path = build_dropout(dict(type='DropPath', drop_prob=drop_path_rate))
        self.fast_path = None
        if sparse:
            self.fast_path = FastPath(embed_dims, build_norm_layer(norm_cfg, embed_dims)[1])

    def mix(
        self, x: Tensor, hw: tuple[int, int], padding: Padding | None = None
    ) -> tuple[Tensor, Tensor]:
        layout, masks = self.attn.layout(x, hw, None if padding is None else padding.shapes)
        x = x + self.drop_path(self.attend(x, layout, masks))
        return x, x

    def attend(self, x: Tensor, layout: WindowLayout, masks: Tensor | None) -> Tensor:
        """Attention update of (B, N, C); see :class:`ShiftWindowMSA`."""
        return self.attn(self.norm1(x), layout, masks)

    def slow_path(self, x: Tensor) -> Tensor:
        # Not ffn.forward, in which mmcv's check for deprecated arguments costs time.
        return self.ffn.layers(self.norm2(x))


class DynamicSwinStage(BaseModule):
    """Blocks of one stage and the downsampling after them; names as in the hosts."""

    def __init__(self, blocks: Iterable[DynamicSwinBlock], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = ModuleList(blocks)
        self.downsample = downsample


@MODELS.register_module()
class DynamicSwin(StagedBackbone):
    """Swin Transformer with dynamic spatial sparsification.

    Takes the arguments and loads the state dict of mmseg's and mmdet's ``SwinTransformer``, and
    computes the same when every keep ratio is 1. Follows Rao et al. (arXiv 2207.01580), section
    3.3; the two paths merge into one map after every block, so masked and gathered execution agree
    even where a location changes path between predictors. With an absolute position embedding it
    also takes inputs of any size (interpolated), unlike the hosts' version.

    Args:
        pretrain_img_size: input size of the pretraining, for the absolute position embedding; an
            int or (h, w) in pixels.
        in_channels, embed_dims: channels of the images; C of the first stage, doubled in each
            further stage.
        patch_size, window_size: side of a patch in pixels; of an attention window in locations.
        mlp_ratio: hidden width of the MLPs over C.
        depths, num_heads: blocks and attention heads of each stage.
        strides: stride of the patch embedding and of each downsampling.
        out_indices: stages whose maps are returned.
        qkv_bias, qk_scale: whether query, key and value have a bias; factor on the query, None =
            head width ** -0.5.
        patch_norm: whether patch embedding and merging are normalised.
        drop_rate, attn_drop_rate: dropout of embeddings, projections and MLPs; of attention
            weights.
        drop_path_rate: stochastic depth of the last block, rising from 0.
        use_abs_pos_embed: whether to add an absolute position embedding.
        act_cfg, norm_cfg: activation of the MLPs, and normalisation layers.
        with_cp: recompute blocks in the backward pass to save memory.
        pretrained, init_cfg: a checkpoint, or ``dict(type='Pretrained', checkpoint=…)``.
        convert_weights: ignored; the layout of a checkpoint is recognised by its keys.
        frozen_stages: freeze the patch embedding (0) and this many stages; -1 freezes nothing.
        keep_ratios: fraction of locations on the slow path after each predictor, in (0, 1],
            non-increasing.
        sparse_stage: index of the sparse stage, from 0.
        sparse_blocks: block position of each predictor in that stage; None = (1, 2, 3) for at most
            9 blocks, else (2, 4, 6).
        policy: evaluation policy, an instance or a config; None = top-k.
        shift_one_window: whether windows are shifted even where the map fits one, as the hosts do;
            the ImageNet models of Microsoft, timm and the original don't.

    Raises:
        TypeError, ValueError: on an invalid argument; the message names value and remedy.
    """

    def __init__(
        self,
        pretrain_img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        embed_dims: int = 96,
        patch_size: int = 4,
        window_size: int = 7,
        mlp_ratio: float = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        strides: Sequence[int] = (4, 2, 2, 2),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_abs_pos_embed: bool = False,
        act_cfg: dict = dict(type='GELU'),  # noqa: B006, the hosts' signature; never written to
        norm_cfg: dict = dict(type='LN'),  # noqa: B006
        with_cp: bool = False,
        pretrained: str | None = None,
        convert_weights: bool = False,
        frozen_stages: int = -1,
        init_cfg: dict | None = None,
        *,
        keep_ratios: Sequence[float] = (0.7, 0.5, 0.3),
        sparse_stage: int = 2,
        sparse_blocks: Sequence[int] | None = None,
        policy: Policy | dict[str, Any] | None = None,
        shift_one_window: bool = True,
    ) -> None:
        super().__init__(init_cfg=pretrained_init_cfg(pretrained, init_cfg))
        depths = check_sizes('depths', depths)
        num_heads = check_sizes('num_heads', num_heads)
        strides = check_sizes('strides', strides)
        for name, size in (('embed_dims', embed_dims), ('window_size', window_size)):
            check_integer(name, size)
        stages = len(depths)
        if not len(num_heads) == len(strides) == stages:
            raise ValueError(
                f'depths {depths}, num_heads {num_heads} and strides {strides} must have '
                'one entry per stage'
            )
        if strides[0] != patch_size:
            raise ValueError(
                f'patch embedding does not overlap: strides[0]={strides[0]} must equal '
                f'patch_size={patch_size}'
            )
        channels = [embed_dims * 2**i for i in range(stages)]
        self.set_stages(depths, channels, strides, out_indices, frozen_stages, with_cp)
        self.set_sparsity(keep_ratios, sparse_stage, sparse_blocks, policy, deep_blocks=(2, 4, 6))

        patch_norm_cfg = norm_cfg if patch_norm else None
        self.patch_embed = PatchEmbed(
            in_channels=in_channels,
            embed_dims=embed_dims,
            kernel_size=patch_size,
            stride=strides[0],
            padding='corner',
            norm_cfg=patch_norm_cfg,
        )
        self.pretrain_hw = tuple(side // patch_size for side in to_2tuple(pretrain_img_size))
        self.absolute_pos_embed = (
            nn.Parameter(torch.zeros(1, self.pretrain_hw[0] * self.pretrain_hw[1], embed_dims))
            if use_abs_pos_embed
            else None
        )
        self.drop_after_pos = nn.Dropout(drop_rate)

        drop_path_rates = rising_drop_path(drop_path_rate, sum(depths)).split(depths)
        self.stages = ModuleList()
        for i, (depth, channels) in enumerate(zip(depths, self.num_features, strict=True)):
            blocks = [
                DynamicSwinBlock(
                    channels,
                    num_heads[i],
                    check_integer('mlp_ratio times the channels', int(mlp_ratio * channels)),
                    window_size=window_size,
                    shift=j % 2 == 1,
                    shift_one_window=shift_one_window,
                    sparse=self.has_fast_path(i, j),
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop_rate=drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    drop_path_rate=drop_path_rates[i][j].item(),
                    act_cfg=act_cfg,
                    norm_cfg=norm_cfg,
                )
                for j in range(depth)
            ]
            downsample = None
            if i + 1 < stages:
                downsample = PatchMerging(
                    in_channels=channels,
                    out_channels=2 * channels,
                    stride=strides[i + 1],
                    norm_cfg=patch_norm_cfg,
                )
            self.stages.append(DynamicSwinStage(blocks, downsample))
        for i in self.out_indices:
            self.add_module(f'norm{i}', build_norm_layer(norm_cfg, self.num_features[i])[1])
        # Already here, so that an optimizer or DDP built next sees what is frozen.
        freeze(self.frozen_modules())

    def map_hw(self, image_hw: tuple[int, int], stage: int | None = None) -> tuple[int, int]:
        # Rounded up: maps are padded to whole patches.
        stride = self.stride_of(stage)
        return -(-image_hw[0] // stride), -(-image_hw[1] // stride)

    def enter_stage(
        self, index: int, x: Tensor, hw: tuple[int, int], padding: Padding | None
    ) -> Tensor:
        if index > 0:
            return self.stages[index - 1].downsample(x, hw)[0]
        x = self.patch_embed(x)[0]
        if self.absolute_pos_embed is not None:
            x = x + positions(self.position_embedding, self.map_hw(hw, 0), padding)
        return self.drop_after_pos(x)

    def blocks_of(self, index: int) -> Iterable[StageBlock]:
        return self.stages[index].blocks

    def position_embedding(self, hw: tuple[int, int]) -> Tensor:
        """(1, H·W, C): absolute position embedding, resized to a map of ``hw``."""
        if tuple(hw) == self.pretrain_hw:
            return self.absolute_pos_embed
        table = self.absolute_pos_embed.transpose(1, 2).unflatten(2, self.pretrain_hw)
        table = F.interpolate(table, size=hw, mode='bicubic', align_corners=False)
        return table.flatten(2).transpose(1, 2)

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        """The patch embedding, and stages with their output norms."""
        if self.frozen_stages < 0:
            return
        yield self.patch_embed
        yield self.drop_after_pos
        if self.absolute_pos_embed is not None:
            yield self.absolute_pos_embed
        for i in range(self.frozen_stages):
            yield self.stages[i]
            if i in self.out_indices:
                yield getattr(self, f'norm{i}')
        if self.frozen_stages > self.sparse_stage:
            yield self.predictors

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_init(module, std=0.02, bias=0.0)
            elif isinstance(module, nn.LayerNorm):
                constant_init(module, 1.0, bias=0.0)
            elif isinstance(module, WindowMSA):
                trunc_normal_(module.relative_position_bias_table, std=0.02)
        if self.absolute_pos_embed is not None:
            trunc_normal_(self.absolute_pos_embed, std=0.02)

    def adapt_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resize a checkpoint's bias tables to this model's window, with a warning."""
        window, own = window_of(state), window_of(self.state_dict())
        if window in (None, own):
            return state
        print_log(
            f'bias tables of {window}x{window} windows are resized to {own}x{own}: outputs differ '
            f'until the model is trained; window_size={window} keeps them',
            logger='current',
            level=logging.WARNING,
        )
        return {
            key: resize_bias_table(value, (2 * own - 1) ** 2)
            if key.endswith('.relative_position_bias_table')
            else value
            for key, value in state.items()
        }


def resize_bias_table(table: Tensor, length: int) -> Tensor:
    """Resize a bias table bicubically: (side², heads) -> (length, heads)."""
    old, new = round(table.shape[0] ** 0.5), round(length**0.5)
    grid = table.transpose(0, 1).reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode='bicubic', align_corners=False)
    return grid.reshape(-1, length).transpose(0, 1).contiguous()
