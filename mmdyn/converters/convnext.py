"""Key maps of ConvNeXt checkpoints: pure functions on state dicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmdyn.converters.additions import drop_idle_fast_paths, predictor_rules
from mmdyn.converters.rules import Drop, Refuse, Rename, Renamed, Rule, keep, rename
from mmdyn.converters.shapes import depths_of, tensor_of

_CONVNEXT_V2 = 'ConvNeXt V2 normalises inside its MLPs; take a first-generation ConvNeXt'

_SAME_NAMES = keep(
    'downsample_layers.{i}.{n}.*', 'stages.{i}.{j}.norm.*', 'stages.{i}.{j}.gamma', 'norm{i}.*'
)
_FAIR_RULES = (
    *_SAME_NAMES,
    Refuse('stages.{i}.{j}.grn.*', _CONVNEXT_V2),
    Rename('stages.{i}.{j}.dwconv.*', 'stages.{i}.{j}.depthwise_conv.*'),
    Rename('stages.{i}.{j}.pwconv{n}.*', 'stages.{i}.{j}.pointwise_conv{n}.*'),
    Rename('stages.{i}.{j}.fast_path.0.*', 'stages.{i}.{j}.fast_path.norm.*'),
    Rename('stages.{i}.{j}.fast_path.1.*', 'stages.{i}.{j}.fast_path.proj.*'),
    Rename('stages.{i}.{j}.fast_path_gamma', 'stages.{i}.{j}.fast_path.gamma'),
    *predictor_rules(),
    Drop('head.*', 'classifier'),
)
_TIMM_RULES = (
    Rename('stem.0.*', 'downsample_layers.0.0.*'),
    Rename('stem.1.*', 'downsample_layers.0.1.*'),
    Rename('stages.{i}.downsample.{n}.*', 'downsample_layers.{i}.{n}.*'),
    Rename('stages.{i}.blocks.{j}.conv_dw.*', 'stages.{i}.{j}.depthwise_conv.*'),
    Rename('stages.{i}.blocks.{j}.norm.*', 'stages.{i}.{j}.norm.*'),
    Rename('stages.{i}.blocks.{j}.mlp.fc{n}.*', 'stages.{i}.{j}.pointwise_conv{n}.*'),
    Rename('stages.{i}.blocks.{j}.gamma', 'stages.{i}.{j}.gamma'),
    Refuse('stages.{i}.blocks.{j}.mlp.grn.*', _CONVNEXT_V2),
    Drop('head.fc.*', 'classifier'),
    Drop('head.pre_logits.*', 'classifier'),
)
_OPENMMLAB_RULES = (
    *_SAME_NAMES,
    Refuse('stages.{i}.{j}.grn.*', _CONVNEXT_V2),
    *keep(
        'stages.{i}.{j}.depthwise_conv.*',
        'stages.{i}.{j}.pointwise_conv{n}.*',
        'stages.{i}.{j}.fast_path.*',
        'predictors.{k}.*',
    ),
    Drop('head.*', 'classifier'),
)


def from_fair(state: Mapping[str, Tensor]) -> Renamed:
    """Rename FAIR's ConvNeXt or an original DynamicConvNeXt to our names.

    The dense part gets mmpretrain's names; the norm before the classifier
    becomes the last stage's output norm.

    Args:
        state: keys such as ``stages.0.1.pwconv1.weight``.

    Returns:
        Keys such as ``stages.0.1.pointwise_conv1.weight``.
    """
    renamed = rename(state, (_last_norm('norm.*', state), *_FAIR_RULES), _as_linear)
    return drop_idle_fast_paths(renamed, deep=3)


def from_timm(state: Mapping[str, Tensor]) -> Renamed:
    """Rename timm's ConvNeXt to our names.

    Args:
        state: keys such as ``stages.0.blocks.1.mlp.fc1.weight``.
    """
    # The norm that some models have before pooling is one of the map.
    norms = (_last_norm('head.norm.*', state), _last_norm('norm_pre.*', state))
    return rename(state, (*norms, *_TIMM_RULES), _as_linear)


def from_openmmlab(state: Mapping[str, Tensor]) -> Renamed:
    """Keep the names of mmpretrain's ConvNeXt and of our own.

    Args:
        state: keys such as ``stages.0.1.pointwise_conv1.weight``.
    """
    return rename(state, _OPENMMLAB_RULES, _as_linear)


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the constructor's arguments from the shapes of our names.

    Args:
        state: a dense or sparse state dict of ours.

    Raises:
        ValueError: if a part that tells an argument is missing.
    """
    stem = tensor_of(state, 'downsample_layers.0.0.weight', 4)
    tensor_of(state, 'downsample_layers.0.1.weight', 1)  # a norm, and no second convolution
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


def _last_norm(pattern: str, state: Mapping[str, Tensor]) -> Rule:
    stages = [int(key.split('.')[1]) for key in state if re.match(r'stages\.[0-9]+\.', key)]
    return Rename(pattern, f'norm{max(stages, default=0)}.*')


def _as_linear(name: str, value: Tensor) -> Tensor:
    """A pointwise convolution's (out, in, 1, 1) becomes (out, in)."""
    pointwise = any(part in name for part in ('.pointwise_conv', '.fast_path.', 'predictors.'))
    return value.flatten(1) if pointwise and value.shape[2:] == (1, 1) else value
