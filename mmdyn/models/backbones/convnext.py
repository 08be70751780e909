"""ConvNeXt with one sparse stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import build_activation_layer
from mmcv.cnn.bricks.drop import build_dropout
from mmengine.model import ModuleList
from mmengine.model.weight_init import initialize
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mmdyn.config_parts import type_name
from mmdyn.models.backbones.arguments import check_sizes, rising_drop_path
from mmdyn.models.backbones.base import FastPath, StageBlock, StagedBackbone, freeze, scaled
from mmdyn.models.backbones.maps import Padding, hide, to_map, to_tokens
from mmdyn.registry import MODELS
from mmdyn.sparsity import Policy

# Blocks of the stages and C of the first one, doubled in each further stage.
ARCHS = {
    'atto': ((2, 2, 6, 2), 40),
    'femto': ((2, 2, 6, 2), 48),
    'pico': ((2, 2, 6, 2), 64),
    'nano': ((2, 2, 8, 2), 80),
    'tiny': ((3, 3, 9, 3), 96),
    'small': ((3, 3, 27, 3), 96),
    'base': ((3, 3, 27, 3), 128),
    'large': ((3, 3, 27, 3), 192),
    'xlarge': ((3, 3, 27, 3), 256),
    'huge': ((3, 3, 27, 3), 352),
}


def check_arch(arch: str | Mapping[str, Sequence[int]]) -> tuple[list[int], list[int]]:
    """Validate ``arch`` and return depths and channels of the stages.

    Raises:
        ValueError: if it is neither a name in :data:`ARCHS` nor a mapping with as many ``depths``
            as ``channels``.
    """
    if isinstance(arch, str) and arch in ARCHS:
        depths, width = ARCHS[arch]
        return list(depths), [width * 2**i for i in range(len(depths))]
    given = arch if isinstance(arch, Mapping) else {}
    stages = [given.get(name) for name in ('depths', 'channels')]
    lengths = {len(one) if isinstance(one, Sequence) else 0 for one in stages}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f'arch must be one of {tuple(ARCHS)} or dict(depths=…, channels=…) with one entry per '
            f'stage in both, got {arch!r}'
        )
    depths, channels = (list(check_sizes("arch's depths and channels", one)) for one in stages)
    return depths, channels


def check_norm_cfg(norm_cfg: Mapping[str, Any]) -> float:
    """Return the eps of a LayerNorm over channels; ValueError for another norm."""
    settings = dict(norm_cfg)
    kind, eps = type_name(settings), settings.pop('eps', 1e-5)
    settings.pop('type', None)
    if kind not in ('LN2d', 'LayerNorm2d') or settings:
        raise ValueError(
            f"norm_cfg must be dict(type='LN2d', eps=…), a LayerNorm over the channels of each "
            f'location, got {dict(norm_cfg)}'
        )
    return float(eps)


def layer_scale(channels: int, init_value: float) -> nn.Parameter | None:
    """(C,) layer scale, or None if ``init_value`` is 0."""
    return nn.Parameter(torch.full((channels,), init_value)) if init_value > 0 else None


class DynamicConvNeXtBlock(StageBlock):
    """A ConvNeXt block whose MLP can be replaced by a fast path per location.

    ``sparse`` adds the fast path; the other arguments are the backbone's.
    """

    compiled_regions = ('slow_path',)

    def __init__(
        self,
        channels: int,
        *,
        sparse: bool,
        norm_eps: float,
        act_cfg: dict,
        drop_path_rate: float,
        layer_scale_init_value: float,
    ) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        self.pointwise_conv1 = nn.Linear(channels, 4 * channels)
        self.act = build_activation_layer(act_cfg)
        self.pointwise_conv2 = nn.Linear(4 * channels, channels)
        self.gamma = layer_scale(channels, layer_scale_init_value)
        self.drop_path = build_dropout(dict(type='DropPath', drop_prob=drop_path_rate))
        self.fast_path = None
        if sparse:
            norm = nn.LayerNorm(channels, eps=norm_eps)
            gamma = layer_scale(channels, layer_scale_init_value)
            self.fast_path = FastPath(channels, norm, gamma)

    def mix(
        self, x: Tensor, hw: tuple[int, int], padding: Padding | None = None
    ) -> tuple[Tensor, Tensor]:
        return x, to_tokens(self.depthwise_conv(to_map(hide(x, padding), hw)))

    def slow_path(self, x: Tensor) -> Tensor:
        x = self.pointwise_conv2(self.act(self.pointwise_conv1(self.norm(x))))
        return scaled(x, self.gamma)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # mmpretrain's MLPs may be 1x1 convolutions, which are equivalent.
        for name in ('pointwise_conv1', 'pointwise_conv2'):
            weight = state_dict.get(f'{prefix}{name}.weight')
            if weight is not None and weight.shape[2:] == (1, 1):
                state_dict[f'{prefix}{name}.weight'] = weight.flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *args)


@MODELS.register_module()
class DynamicConvNeXt(StagedBackbone):
    """ConvNeXt with dynamic spatial sparsification.

    Takes the arguments and loads the state dict of mmpretrain's ``ConvNeXt`` (V1), and computes the
    same when every keep ratio is 1. Two defaults differ, so that ``forward`` returns maps:
    ``out_indices`` and ``gap_before_final_norm``. Follows Rao et al. (arXiv 2207.01580), section
    3.3: depthwise convolutions stay dense, and the two paths merge into one map after every block,
    so masked and gathered execution agree even where a location changes path between predictors.
    Features are channels-last throughout.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'`` or another name in ``ARCHS``, or
            ``dict(depths=…, channels=…)``.
        in_channels, stem_patch_size: channels of the images; side of a patch in pixels.
        norm_cfg, act_cfg: ``dict(type='LN2d', eps=…)``, LayerNorm over channels; activation of
            the MLPs.
        linear_pw_conv: ignored: MLPs are Linear layers, which also load the weights of 1x1
            convolutions.
        use_grn: must be False; the response normalisation of ConvNeXt V2 needs the MLP of every
            location.
        drop_path_rate: stochastic depth of the last block, rising from 0.
        layer_scale_init_value: initial layer scale; 0 = no layer scale.
        out_indices: stages whose maps are returned; negative from the last.
        frozen_stages: number of frozen stages, each with the downsampling before it; 0 freezes
            nothing.
        gap_before_final_norm: must be False.
        with_cp: recompute blocks in the backward pass to save memory.
        init_cfg: None or ``dict(type='Pretrained', checkpoint=…, prefix=…)``.
        policy, sparse_stage, keep_ratios: as for ``DynamicSwin``.
        sparse_blocks: block position of each predictor in the sparse stage; None =
            (1, 2, 3) for at most 9 blocks, else (3, 6, 9).

    Raises:
        TypeError, ValueError: on an invalid argument; the message names value and remedy.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Sequence[int]] = 'tiny',
        in_channels: int = 3,
        stem_patch_size: int = 4,
        norm_cfg: dict = dict(type='LN2d', eps=1e-6),  # noqa: B006, mmpretrain's; never written to
        act_cfg: dict = dict(type='GELU'),  # noqa: B006
        linear_pw_conv: bool = True,
        use_grn: bool = False,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = 0,
        gap_before_final_norm: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        *,
        policy: Policy | dict[str, Any] | None = None,
        sparse_stage: int = 2,
        sparse_blocks: Sequence[int] | None = None,
        keep_ratios: Sequence[float] = (0.7, 0.5, 0.3),
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if use_grn:
            raise ValueError(
                'use_grn=True (ConvNeXt V2) normalises over the MLP outputs of all locations, '
                'which a sparse MLP does not compute; use a ConvNeXt V1, use_grn=False'
            )
        if gap_before_final_norm:
            raise ValueError(
                'gap_before_final_norm=True returns vectors, but a sparse backbone returns maps; '
                'set gap_before_final_norm=False and pool in the neck or head'
            )
        self.layer_scale_init_value = layer_scale_init_value
        depths, channels = check_arch(arch)
        norm_eps = check_norm_cfg(norm_cfg)
        strides = [stem_patch_size] + [2] * (len(depths) - 1)
        self.set_stages(depths, channels, strides, out_indices, frozen_stages, with_cp)
        self.set_sparsity(
            keep_ratios,
            sparse_stage,
            sparse_blocks,
            policy,
            deep_blocks=(3, 6, 9),
            norm_eps=norm_eps,
        )

        drop_path_rates = rising_drop_path(drop_path_rate, sum(depths)).split(depths)
        self.downsample_layers = ModuleList()
        self.stages = ModuleList()
        for i, (depth, width, stride) in enumerate(zip(depths, channels, strides, strict=True)):
            before = in_channels if i == 0 else channels[i - 1]
            conv = nn.Conv2d(before, width, stride, stride)
            self.downsample_layers.append(
                nn.Sequential(conv, LayerNorm2d(width, eps=norm_eps))
                if i == 0
                else nn.Sequential(LayerNorm2d(before, eps=norm_eps), conv)
            )
            self.stages.append(
                ModuleList(
                    DynamicConvNeXtBlock(
                        width,
                        sparse=self.has_fast_path(i, j),
                        norm_eps=norm_eps,
                        act_cfg=act_cfg,
                        drop_path_rate=drop_path_rates[i][j].item(),
                        layer_scale_init_value=layer_scale_init_value,
                    )
                    for j in range(depth)
                )
            )
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(channels[i], eps=norm_eps))
        # Already here, so that an optimizer or DDP built next sees what is frozen.
        freeze(self.frozen_modules())

    def map_hw(self, image_hw: tuple[int, int], stage: int | None = None) -> tuple[int, int]:
        # Rounded down: convolutions drop incomplete patches. At least one, since an image that is
        # too small by itself may be part of a larger batch.
        stride = self.stride_of(stage)
        return max(1, image_hw[0] // stride), max(1, image_hw[1] // stride)

    def enter_stage(
        self, index: int, x: Tensor, hw: tuple[int, int], padding: Padding | None
    ) -> Tensor:
        least = math.prod(self.strides)
        if index == 0 and min(hw) < least:
            raise ValueError(
                f'images of {hw[0]}x{hw[1]} pixels are too small: this backbone needs at least '
                f'{least} pixels a side'
            )
        return to_tokens(self.downsample_layers[index](x if index == 0 else to_map(x, hw)))

    def blocks_of(self, index: int) -> Iterable[StageBlock]:
        return self.stages[index]

    def image_map(self, x: Tensor, last: Tensor) -> Tensor:
        """See the base class; ConvNeXt pools before its norm."""
        norm = getattr(self, f'norm{len(self.depths) - 1}')
        return to_map(norm(x.mean(dim=1, keepdim=True)), (1, 1))

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        """Stages with the downsampling before them, not the output norms."""
        for i in range(self.frozen_stages):
            yield self.downsample_layers[i]
            yield self.stages[i]
        if self.frozen_stages > self.sparse_stage:
            yield self.predictors

    def reset_parameters(self) -> None:
        weights = dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0)
        norms = dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0)
        initialize(self, [weights, norms])
        for name, parameter in self.named_parameters():
            if name.endswith('.gamma'):
                nn.init.constant_(parameter, self.layer_scale_init_value)
