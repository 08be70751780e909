"""Key maps of plain Vision Transformers (ViT, DeiT): pure functions on state dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmdyn.converters.additions import predictor_rules
from mmdyn.converters.rules import Drop, Refuse, Rename, Renamed, keep, rename
from mmdyn.converters.shapes import depths_of, ratio, tensor_of

_DISTILLED = (
    'a distilled DeiT has a second class token, which DynamicViT has not; take the model that '
    'was trained without distillation'
)
_REGISTERS = 'register tokens have no place in DynamicViT; take a model without them'
_OTHER_BLOCKS = "its blocks compute more than a plain ViT's; take a model without"
_OTHERS = (
    Refuse('norm_pre.*', 'a norm before the blocks has no place in DynamicViT'),
    Refuse('blocks.{i}.ls{n}.*', f'{_OTHER_BLOCKS} layer scale'),
    Refuse('blocks.{i}.attn.q_norm.*', f'{_OTHER_BLOCKS} query and key norms'),
    Refuse('blocks.{i}.attn.k_norm.*', f'{_OTHER_BLOCKS} query and key norms'),
    Refuse('dist_token', _DISTILLED),
    Refuse('head_dist.*', _DISTILLED),
    Refuse('reg_token', _REGISTERS),
    Refuse('register_tokens', _REGISTERS),
)
_TOKENS = keep('cls_token', 'pos_embed')
_TIMM_RULES = (
    *_OTHERS,
    *_TOKENS,
    *keep(
        'patch_embed.proj.*',
        'patch_embed.norm.*',
        'blocks.{i}.norm{n}.*',
        'blocks.{i}.attn.qkv.*',
        'blocks.{i}.attn.proj.*',
        'blocks.{i}.mlp.fc{n}.*',
        'blocks.{i}.fast_path.*',
        'norm.*',
        'predictors.{k}.*',
    ),
    *predictor_rules(),
    Drop('head.*', 'classifier'),
    Drop('pre_logits.*', 'classifier'),
)
_OPENMMLAB_NAMES = (
    Rename('patch_embed.projection.*', 'patch_embed.proj.*'),
    Rename('layers.{i}.ln{n}.*', 'blocks.{i}.norm{n}.*'),
    # mmpretrain's attention, then mmseg's, which wraps torch's.
    Rename('layers.{i}.attn.qkv.*', 'blocks.{i}.attn.qkv.*'),
    Rename('layers.{i}.attn.proj.*', 'blocks.{i}.attn.proj.*'),
    Rename('layers.{i}.attn.attn.in_proj_weight', 'blocks.{i}.attn.qkv.weight'),
    Rename('layers.{i}.attn.attn.in_proj_bias', 'blocks.{i}.attn.qkv.bias'),
    Rename('layers.{i}.attn.attn.out_proj.*', 'blocks.{i}.attn.proj.*'),
    Rename('layers.{i}.ffn.layers.0.0.*', 'blocks.{i}.mlp.fc1.*'),
    Rename('layers.{i}.ffn.layers.1.*', 'blocks.{i}.mlp.fc2.*'),
    Rename('ln1.*', 'norm.*'),
)
_OPENMMLAB_RULES = (
    *_OTHERS,
    *_TOKENS,
    *keep('patch_embed.norm.*'),
    *_OPENMMLAB_NAMES,
    Drop('head.*', 'classifier'),
)


def from_timm(state: Mapping[str, Tensor]) -> Renamed:
    """Keep the names of timm's ViT and of our own; rename an original DynamicViT's predictors.

    Args:
        state: keys such as ``blocks.1.mlp.fc1.weight``.
    """
    return rename(state, _TIMM_RULES)


def openmmlab_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what has mmseg's or mmpretrain's names to timm's; every other key stays."""
    renamed = rename(state, _OPENMMLAB_NAMES)
    return renamed.state_dict | renamed.unknown


def from_openmmlab(state: Mapping[str, Tensor]) -> Renamed:
    """Rename mmseg's or mmpretrain's ViT to our names, which are timm's.

    mmseg's patch embedding has no bias by default; it gets one of zeros.

    Args:
        state: keys such as ``layers.1.ffn.layers.0.0.weight``.

    Returns:
        Keys such as ``blocks.1.mlp.fc1.weight``.
    """
    renamed = rename(state, _OPENMMLAB_RULES)
    weight, bias = (renamed.state_dict.get(f'patch_embed.proj.{x}') for x in ('weight', 'bias'))
    if weight is None or bias is not None:
        return renamed
    filled = {'patch_embed.proj.bias': weight.new_zeros(weight.shape[0])}
    return dataclasses.replace(renamed, state_dict=renamed.state_dict | filled, added=tuple(filled))


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the constructor's arguments from the shapes of our names.

    The number of heads leaves no trace in them: heads are taken to be 64 wide, as
    in every DeiT.

    Args:
        state: a dense or sparse state dict of ours.

    Raises:
        ValueError: if a part that tells an argument is missing.
    """
    embed_dims, in_channels, patch = tensor_of(state, 'patch_embed.proj.weight', 4).shape[:3]
    (layers,) = depths_of(state, r'blocks\.(?P<block>[0-9]+)\.')
    class_token = 'cls_token' in state
    locations = tensor_of(state, 'pos_embed', 3).shape[1] - class_token
    if round(locations**0.5) ** 2 != locations:
        raise ValueError(
            f'its pos_embed is for {locations} locations, no square, and nothing in the file tells '
            'the height from the width: name the file as load_from, or in init_cfg, of a config '
            'that sets img_size'
        )
    hidden = tensor_of(state, 'blocks.0.mlp.fc1.weight', 2).shape[0]
    heads = 1 if embed_dims % 64 else embed_dims // 64
    arguments = dict(embed_dims=embed_dims, num_layers=layers, num_heads=heads)
    unusual = dict(
        img_size=(round(locations**0.5) * patch, 224),
        patch_size=(patch, 16),
        in_channels=(in_channels, 3),
        mlp_ratio=(ratio(hidden, embed_dims), 4),
        qkv_bias=('blocks.0.attn.qkv.bias' in state, True),
        with_cls_token=(class_token, True),
        patch_norm=('patch_embed.norm.weight' in state, False),
        patch_bias=('patch_embed.proj.bias' in state, True),
        fast_path=(any('.fast_path.' in key for key in state), False),
    )
    return arguments | {key: found for key, (found, usual) in unusual.items() if found != usual}
