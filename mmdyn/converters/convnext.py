"""Key maps of ConvNeXt checkpoints: pure functions on state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmdyn.converters.additions import (
    LAYER_BEFORE,
    classifier_rules,
    drop_idle_fast_paths,
    predictor_rules,
)
from mmdyn.converters.architecture import depths_of, tensor_of
from mmdyn.converters.rules import Drop, Refuse, Renamed, keep, last_norm, rename

_CONVNEXT_V2 = 'ConvNeXt V2 normalises inside its MLPs; use a ConvNeXt V1'

_SAME_NAMES = keep(
    'downsample_layers.{i}.{n}.*', 'stages.{i}.{j}.norm.*', 'stages.{i}.{j}.gamma', 'norm{i}.*'
)
_FAIR_RULES = {
    **_SAME_NAMES,
    'stages.{i}.{j}.grn.*': Refuse(_CONVNEXT_V2),
    'stages.{i}.{j}.dwconv.*': 'stages.{i}.{j}.depthwise_conv.*',
    'stages.{i}.{j}.pwconv{n}.*': 'stages.{i}.{j}.pointwise_conv{n}.*',
    'stages.{i}.{j}.fast_path.0.*': 'stages.{i}.{j}.fast_path.norm.*',
    'stages.{i}.{j}.fast_path.1.*': 'stages.{i}.{j}.fast_path.proj.*',
    'stages.{i}.{j}.fast_path_gamma': 'stages.{i}.{j}.fast_path.gamma',
    **predictor_rules(),
    **classifier_rules(),
}
_TIMM_RULES = {
    'stem.0.*': 'downsample_layers.0.0.*',
    'stem.1.*': 'downsample_layers.0.1.*',
    'stages.{i}.downsample.{n}.*': 'downsample_layers.{i}.{n}.*',
    'stages.{i}.blocks.{j}.conv_dw.*': 'stages.{i}.{j}.depthwise_conv.*',
    'stages.{i}.blocks.{j}.norm.*': 'stages.{i}.{j}.norm.*',
    'stages.{i}.blocks.{j}.mlp.fc{n}.*': 'stages.{i}.{j}.pointwise_conv{n}.*',
    'stages.{i}.blocks.{j}.gamma': 'stages.{i}.{j}.gamma',
    'stages.{i}.blocks.{j}.mlp.grn.*': Refuse(_CONVNEXT_V2),
    'head.pre_logits.*': Drop(LAYER_BEFORE),
    **classifier_rules(),
}
_OPENMMLAB_RULES = {
    **_SAME_NAMES,
    'stages.{i}.{j}.grn.*': Refuse(_CONVNEXT_V2),
    **keep(
        'stages.{i}.{j}.depthwise_conv.*',
        'stages.{i}.{j}.pointwise_conv{n}.*',
        'stages.{i}.{j}.fast_path.*',
        'predictors.{k}.*',
    ),
    **classifier_rules(),
}


def from_fair(state: Mapping[str, Tensor]) -> Renamed:
    """Rename FAIR's ConvNeXt or an original DynamicConvNeXt to our names.

    ``stages.0.1.pwconv1.weight`` becomes ``stages.0.1.pointwise_conv1.weight``, as in mmpretrain;
    the norm before the classifier becomes the last stage's output norm.
    """
    rules = {**last_norm(state, 'norm.*'), **_FAIR_RULES}
    return drop_idle_fast_paths(rename(state, rules, _as_linear), deep=3)


def from_timm(state: Mapping[str, Tensor]) -> Renamed:
    """Rename timm's ConvNeXt, such as ``stages.0.blocks.1.mlp.fc1.weight``, to our names."""
    # Some models have a norm before pooling, which applies to the map.
    rules = {**last_norm(state, 'head.norm.*', 'norm_pre.*'), **_TIMM_RULES}
    return rename(state, rules, _as_linear)


def from_openmmlab(state: Mapping[str, Tensor]) -> Renamed:
    """Keep the names of mmpretrain's ConvNeXt and of our own."""
    return rename(state, _OPENMMLAB_RULES, _as_linear)


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See :class:`mmdyn.converters.formats.Family`."""
    stem = tensor_of(state, 'downsample_layers.0.0.weight', 4)
    tensor_of(state, 'downsample_layers.0.1.weight', 1)  # a norm, not a second convolution
    depths = depths_of(state, r'stages\.(?P<stage>[0-9]+)\.(?P<block>[0-9]+)\.')
    kernels = [
        tensor_of(state, f'stages.{stage}.0.depthwise_conv.weight', 4)
        for stage in range(len(depths))
    ]
    arch = dict(depths=depths, channels=tuple(kernel.shape[0] for kernel in kernels))
    unusual = dict(
        in_channels=(stem.shape[1], 3),
        stem_patch_size=(stem.shape[-1], 4),
        out_indices=(tuple(range(len(depths))), (0, 1, 2, 3)),
    )
    if 'stages.0.0.gamma' not in state:
        unusual['layer_scale_init_value'] = (0.0, 1e-6)
    return dict(arch=arch) | {k: found for k, (found, usual) in unusual.items() if found != usual}


def _as_linear(name: str, value: Tensor) -> Tensor:
    """Reshape a pointwise convolution's (out, in, 1, 1) to (out, in)."""
    pointwise = any(part in name for part in ('.pointwise_conv', '.fast_path.', 'predictors.'))
    return value.flatten(1) if pointwise and value.shape[2:] == (1, 1) else value
