"""Key maps of plain Vision Transformers (ViT, DeiT, LV-ViT): pure functions on state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmdyn.converters.additions import LAYER_BEFORE, classifier_rules, predictor_rules
from mmdyn.converters.architecture import depths_of, tensor_of
from mmdyn.converters.rules import Drop, Refuse, Renamed, keep, rename

_DISTILLED = (
    'a distilled DeiT has a second class token, which DynamicViT does not support; use the model '
    'trained without distillation'
)
_REGISTERS = 'DynamicViT does not support register tokens; use a model without them'
_OTHER_BLOCKS = "its blocks differ from a plain ViT's; use a model without"
_OTHERS = {
    'norm_pre.*': Refuse('DynamicViT does not support a norm before the blocks'),
    'blocks.{i}.ls{n}.*': Refuse(f'{_OTHER_BLOCKS} layer scale'),
    'blocks.{i}.attn.q_norm.*': Refuse(f'{_OTHER_BLOCKS} query and key norms'),
    'blocks.{i}.attn.k_norm.*': Refuse(f'{_OTHER_BLOCKS} query and key norms'),
    'dist_token': Refuse(_DISTILLED),
    'head_dist.*': Refuse(_DISTILLED),
    'reg_token': Refuse(_REGISTERS),
    'register_tokens': Refuse(_REGISTERS),
}
_TOKENS = keep('cls_token', 'pos_embed')
_TIMM_RULES = {
    **_OTHERS,
    **_TOKENS,
    **keep(
        'patch_embed.proj.*',
        'patch_embed.norm.*',
        'patch_embed.conv{n}.weight',  # and below, of LV-ViT
        'patch_embed.bn{n}.*',
        'blocks.{i}.norm{n}.*',
        'blocks.{i}.attn.qkv.*',
        'blocks.{i}.attn.proj.*',
        'blocks.{i}.mlp.fc{n}.*',
        'blocks.{i}.fast_path.*',
        'norm.*',
        'predictors.{k}.*',
    ),
    **predictor_rules(),
    'pre_logits.*': Drop(LAYER_BEFORE),
    **classifier_rules(),
}
_OPENMMLAB_NAMES = {
    'patch_embed.projection.*': 'patch_embed.proj.*',
    'layers.{i}.ln{n}.*': 'blocks.{i}.norm{n}.*',
    # mmpretrain's attention; then mmseg's, which wraps torch's.
    'layers.{i}.attn.qkv.*': 'blocks.{i}.attn.qkv.*',
    'layers.{i}.attn.proj.*': 'blocks.{i}.attn.proj.*',
    'layers.{i}.attn.attn.in_proj_weight': 'blocks.{i}.attn.qkv.weight',
    'layers.{i}.attn.attn.in_proj_bias': 'blocks.{i}.attn.qkv.bias',
    'layers.{i}.attn.attn.out_proj.*': 'blocks.{i}.attn.proj.*',
    'layers.{i}.ffn.layers.0.0.*': 'blocks.{i}.mlp.fc1.*',
    'layers.{i}.ffn.layers.1.*': 'blocks.{i}.mlp.fc2.*',
    'ln1.*': 'norm.*',
}
_OPENMMLAB_RULES = {
    **_OTHERS,
    **_TOKENS,
    **keep('patch_embed.norm.*'),
    **_OPENMMLAB_NAMES,
    **classifier_rules(),
}


def from_timm(state: Mapping[str, Tensor]) -> Renamed:
    """Keep the names of timm's ViT and of our own; rename an original DynamicViT's predictors."""
    return rename(state, _TIMM_RULES)


def openmmlab_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys of mmseg and mmpretrain to timm's names; other keys are kept."""
    renamed = rename(state, _OPENMMLAB_NAMES)
    return renamed.state_dict | renamed.unknown


def from_openmmlab(state: Mapping[str, Tensor]) -> Renamed:
    """Rename mmseg's or mmpretrain's ViT to our names, which are timm's.

    ``layers.1.ffn.layers.0.0.weight`` becomes ``blocks.1.mlp.fc1.weight``.
    """
    return rename(state, _OPENMMLAB_RULES)


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See :class:`mmdyn.converters.formats.Family`.

    Attention heads are assumed 64 wide, as in DeiT and LV-ViT, and residual updates halved in
    LV-ViT.
    """
    embed_dims, in_channels, patch = tensor_of(state, 'patch_embed.proj.weight', 4).shape[:3]
    stem = None
    if 'patch_embed.conv1.weight' in state:  # LV-ViT, at half of the resolution
        stem, in_channels = tensor_of(state, 'patch_embed.conv1.weight', 4).shape[:2]
        patch = 2 * patch
    (layers,) = depths_of(state, r'blocks\.(?P<block>[0-9]+)\.')
    class_token = 'cls_token' in state
    locations = tensor_of(state, 'pos_embed', 3).shape[1] - class_token
    if round(locations**0.5) ** 2 != locations:
        raise ValueError(
            f'its pos_embed has {locations} locations, which is not square, so height and width '
            'are unknown: use the file in load_from or init_cfg of a config that sets img_size'
        )
    hidden = tensor_of(state, 'blocks.0.mlp.fc1.weight', 2).shape[0]
    heads = 1 if embed_dims % 64 else embed_dims // 64
    arguments = dict(embed_dims=embed_dims, num_layers=layers, num_heads=heads)
    unusual = dict(
        img_size=(round(locations**0.5) * patch, 224),
        patch_size=(patch, 16),
        in_channels=(in_channels, 3),
        mlp_ratio=(hidden / embed_dims, 4),
        qkv_bias=('blocks.0.attn.qkv.bias' in state, True),
        with_cls_token=(class_token, True),
        patch_norm=('patch_embed.norm.weight' in state, False),
        patch_bias=('patch_embed.proj.bias' in state, True),
        fast_path=(any('.fast_path.' in key for key in state), False),
        stem_channels=(stem, None),
        skip_lam=(1.0 if stem is None else 2.0, 1.0),
    )
    return arguments | {key: found for key, (found, usual) in unusual.items() if found != usual}
