"""Key maps of Swin checkpoints: pure functions on state dicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmdyn.converters.additions import (
    classifier_rules,
    drop_idle_fast_paths,
    predictor_rules,
)
from mmdyn.converters.architecture import depths_of, tensor_of
from mmdyn.converters.rules import Drop, Refuse, Renamed, keep, last_norm, rename

_FROM_WINDOW = 'buffer determined by the window size'
_SWIN_V2 = 'Swin V2 has a different attention; use a Swin V1'


def merge_order(weight: Tensor) -> Tensor:
    """Reorder the channels that patch merging concatenates, from Microsoft's to OpenMMLab's.

    Microsoft stacks the four patches as whole channel groups, columns first; OpenMMLab unfolds them
    channel by channel, rows first.

    Args:
        weight: (..., 4C), weight of a merge's norm or reduction.
    """
    groups = weight.unflatten(-1, (4, weight.shape[-1] // 4))
    return groups[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


_MICROSOFT_RULES = {
    'patch_embed.proj.*': 'patch_embed.projection.*',
    **keep('patch_embed.norm.*', 'absolute_pos_embed', 'norm{i}.*'),
    'layers.{i}.blocks.{j}.norm{n}.*': 'stages.{i}.blocks.{j}.norm{n}.*',
    'layers.{i}.blocks.{j}.attn_mask': Drop(_FROM_WINDOW),
    'layers.{i}.blocks.{j}.attn.relative_position_index': Drop(_FROM_WINDOW),
    'layers.{i}.blocks.{j}.attn.logit_scale': Refuse(_SWIN_V2),
    'layers.{i}.blocks.{j}.attn.*': 'stages.{i}.blocks.{j}.attn.w_msa.*',
    'layers.{i}.blocks.{j}.mlp.fc1.*': 'stages.{i}.blocks.{j}.ffn.layers.0.0.*',
    'layers.{i}.blocks.{j}.mlp.fc2.*': 'stages.{i}.blocks.{j}.ffn.layers.1.*',
    'layers.{i}.blocks.{j}.fastmlp.fc1.0.*': 'stages.{i}.blocks.{j}.fast_path.norm.*',
    'layers.{i}.blocks.{j}.fastmlp.fc1.1.*': 'stages.{i}.blocks.{j}.fast_path.proj.*',
    'layers.{i}.downsample.*': 'stages.{i}.downsample.*',
    **predictor_rules('layers.2.'),
    **classifier_rules(),
}
_OPENMMLAB_RULES = {
    'stages.{i}.blocks.{j}.attn.w_msa.logit_scale': Refuse(_SWIN_V2),
    **keep('patch_embed.*', 'absolute_pos_embed', 'stages.{i}.*', 'norm{i}.*', 'predictors.{k}.*'),
    **classifier_rules(),
}


def from_microsoft(state: Mapping[str, Tensor]) -> Renamed:
    """Rename Microsoft's Swin or an original DynamicSwin to our names.

    ``layers.0.blocks.1.mlp.fc1.weight`` becomes ``stages.0.blocks.1.ffn.layers.0.0.weight``, as in
    mmseg and mmdet; the norm before the classifier becomes the last stage's output norm.
    """
    rules = {**last_norm(state, 'norm.*'), **_MICROSOFT_RULES}
    return drop_idle_fast_paths(rename(state, rules, _reorder_merging), deep=2)


def from_timm(state: Mapping[str, Tensor]) -> Renamed:
    """Rename timm's Swin: like Microsoft's, but stages begin with their downsampling."""

    def end_of_stage(found: re.Match[str]) -> str:
        return f'layers.{int(found[1]) - 1}.downsample.'

    start = re.compile(r'^layers\.([0-9]+)\.downsample\.')
    return from_microsoft({start.sub(end_of_stage, key): value for key, value in state.items()})


def from_openmmlab(state: Mapping[str, Tensor]) -> Renamed:
    """Keep the names of mmseg's, mmdet's and mmpretrain's Swin and of our own."""
    return rename(state, _OPENMMLAB_RULES)


def window_of(state: Mapping[str, Tensor]) -> int | None:
    """Side of the attention windows, from the bias tables; None without tables.

    Raises:
        ValueError: if a table is invalid, or windows differ between stages.
    """
    found: dict[int, str] = {}
    for key, table in state.items():
        if key.endswith('.relative_position_bias_table'):
            rows = table.shape[0] if table.dim() == 2 else 0
            window = (round(rows**0.5) + 1) // 2
            if not rows or (2 * window - 1) ** 2 != rows or not table.is_floating_point():
                raise ValueError(
                    f'a relative position bias table must be (side², heads), got '
                    f'{tuple(table.shape)} of {table.dtype} ({key}): use the original file'
                )
            found.setdefault(window, key)
    if len(found) > 1:
        sizes = ', '.join(f'{window} in {key}' for window, key in found.items())
        raise ValueError(
            f"its windows differ between stages ({sizes}), but DynamicSwin's have one size: use a "
            'model with one window size'
        )
    return next(iter(found), None)


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See :class:`mmdyn.converters.formats.Family`."""
    projection = tensor_of(state, 'patch_embed.projection.weight', 4)
    embed_dims, in_channels, patch = projection.shape[:3]
    depths = depths_of(state, r'stages\.(?P<stage>[0-9]+)\.blocks\.(?P<block>[0-9]+)\.')
    block = 'stages.{}.blocks.0.attn.w_msa.relative_position_bias_table'
    tables = [tensor_of(state, block.format(stage), 2) for stage in range(len(depths))]
    hidden = tensor_of(state, 'stages.0.blocks.0.ffn.layers.0.0.weight', 2).shape[0]
    arguments = dict(
        embed_dims=embed_dims,
        depths=depths,
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=window_of(state),
    )
    unusual = dict(
        in_channels=(in_channels, 3),
        patch_size=(patch, 4),
        strides=((patch, *[2] * (len(depths) - 1)), (4, 2, 2, 2)),
        out_indices=(tuple(range(len(depths))), (0, 1, 2, 3)),
        mlp_ratio=(hidden / embed_dims, 4),
        qkv_bias=('stages.0.blocks.0.attn.w_msa.qkv.bias' in state, True),
        patch_norm=('patch_embed.norm.weight' in state, True),
        use_abs_pos_embed=('absolute_pos_embed' in state, False),
    )
    if 'absolute_pos_embed' in state:
        locations = tensor_of(state, 'absolute_pos_embed', 3).shape[1]
        unusual['pretrain_img_size'] = (round(locations**0.5) * patch, 224)
    return arguments | {key: found for key, (found, usual) in unusual.items() if found != usual}


def _reorder_merging(name: str, value: Tensor) -> Tensor:
    if '.downsample.' not in name:
        return value
    if value.dim() == 0 or value.shape[-1] % 4:
        raise ValueError(
            f'{name!r} has shape {tuple(value.shape)}, expected 4 C channels (of four patches) in '
            'the last dimension'
        )
    return merge_order(value)
