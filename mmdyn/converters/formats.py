"""Checkpoint layouts that can be converted, recognised by their keys.

In three steps: :func:`weights_of` finds the tensors in a file's content, :func:`recognise` their
layout, :func:`convert` renames and checks them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmdyn.converters import convnext, swin, vit
from mmdyn.converters.additions import (
    LAYER_BEFORE,
    classifier_rules,
    count_predictors,
    is_classifier,
)
from mmdyn.converters.architecture import check_architecture, some
from mmdyn.converters.rules import Renamed, fits, rename


@dataclass(frozen=True)
class Family:
    """Models of one mmdyn class with different arguments.

    Attributes:
        backbone: name of the mmdyn class.
        arguments_of: infers the constructor's arguments from shapes in an mmdyn state dict, dense
            or sparse; raises ValueError if a part is missing.
        assumed: arguments that can't be inferred and are taken from the config.
    """

    backbone: str
    arguments_of: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A layout of state dicts.

    Attributes:
        name: for messages.
        family: that it can be converted to.
        signs: patterns (see :mod:`mmdyn.converters.rules`) that each match some key.
        rename: renames its tensors to our names.
    """

    name: str
    family: str
    signs: tuple[str, ...]
    rename: Callable[[Mapping[str, Tensor]], Renamed]


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        format: name of the recognised layout.
        state_dict: the converted tensors, and those of other parts.
        parts: names in it of a classifier (``head``), or of a decode head, a neck and so on.
        dropped: old name and reason of each tensor dropped on purpose.
        arguments: of the backbone's constructor, as far as known from shapes.
        predictors: their number.
        missing: names of output norms that must be initialised; without predictors these and the
            fast paths must be, too.
    """

    format: str
    state_dict: dict[str, Tensor]
    parts: tuple[str, ...]
    dropped: dict[str, str]
    arguments: dict[str, Any]
    predictors: int
    missing: tuple[str, ...]


FAMILIES = {
    'dynamic-swin': Family('DynamicSwin', swin.arguments_of),
    'dynamic-convnext': Family('DynamicConvNeXt', convnext.arguments_of),
    'dynamic-vit': Family('DynamicViT', vit.arguments_of, assumed=('num_heads',)),
    'dynamic-lvvit': Family('DynamicViT', vit.arguments_of, assumed=('num_heads', 'skip_lam')),
}

_SWIN = 'layers.{i}.blocks.{j}.attn.qkv.weight'
_OUR_SWIN = 'stages.{i}.blocks.{j}.attn.w_msa.qkv.weight'
_CONVNEXT = 'stages.{i}.{j}.dwconv.weight'
_TIMM_CONVNEXT = 'stages.{i}.blocks.{j}.conv_dw.weight'
_OUR_CONVNEXT = 'stages.{i}.{j}.depthwise_conv.weight'
_VIT = ('blocks.{i}.attn.qkv.weight', 'patch_embed.proj.weight')
_LVVIT = (*_VIT, 'patch_embed.conv{n}.weight')
_OURS = 'predictors.{k}.*'

# By family and name: renaming function and signs. The first match counts, since a sparse model
# has the signs of its dense twin as well.
_LAYOUTS = {
    'dynamic-swin': {
        'DynamicSwin, original': (swin.from_microsoft, _SWIN, 'layers.2.score_predictor.{k}.*'),
        'Swin, Microsoft': (swin.from_microsoft, _SWIN, 'layers.0.downsample.*'),
        'Swin, timm': (swin.from_timm, _SWIN),
        'DynamicSwin, mmdyn': (swin.from_openmmlab, _OUR_SWIN, _OURS),
        'Swin, mmseg, mmdet or mmpretrain': (swin.from_openmmlab, _OUR_SWIN),
    },
    'dynamic-convnext': {
        'DynamicConvNeXt, original': (convnext.from_fair, _CONVNEXT, 'score_predictor.{k}.*'),
        'ConvNeXt, FAIR': (convnext.from_fair, _CONVNEXT),
        'ConvNeXt, timm': (convnext.from_timm, _TIMM_CONVNEXT, 'stem.{n}.*'),
        'DynamicConvNeXt, mmdyn': (convnext.from_openmmlab, _OUR_CONVNEXT, _OURS),
        'ConvNeXt, mmpretrain': (convnext.from_openmmlab, _OUR_CONVNEXT),
    },
    'dynamic-lvvit': {  # before ViT, whose signs it has as well
        'DynamicLVViT, original': (vit.from_timm, *_LVVIT, 'score_predictor.{k}.*'),
        'DynamicLVViT, mmdyn': (vit.from_timm, *_LVVIT, _OURS),
        'LV-ViT': (vit.from_timm, *_LVVIT),
    },
    'dynamic-vit': {
        'DynamicViT, original': (vit.from_timm, *_VIT, 'score_predictor.{k}.*'),
        'DynamicViT, mmdyn': (vit.from_timm, *_VIT, _OURS),
        'ViT, timm': (vit.from_timm, *_VIT),
        'ViT, mmseg': (vit.from_openmmlab, 'layers.{i}.attn.attn.in_proj_weight'),
        'ViT, mmpretrain': (vit.from_openmmlab, 'layers.{i}.attn.qkv.weight', 'layers.{i}.ln1.*'),
    },
}
FORMATS = tuple(
    Format(name, family, tuple(signs), rename)
    for family, layouts in _LAYOUTS.items()
    for name, (rename, *signs) in layouts.items()
)


def weights_of(
    checkpoint: Any, name: str = 'the checkpoint'
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the weights in a checkpoint.

    Args:
        checkpoint: a state dict, or a file's content with one under ``state_dict`` or ``model``;
            the prefix ``module.`` is removed from keys.
        name: of the checkpoint, for messages.

    Returns:
        The state dict, and the names of other entries, such as ``optimizer`` or
        ``ema_state_dict``.

    Raises:
        ValueError: if there is no state dict.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f'{name} holds a {type(checkpoint).__name__}, not a state dict; save '
            "{'state_dict': model.state_dict()}"
        )
    wrappers = (key for key in ('state_dict', 'model') if isinstance(checkpoint.get(key), Mapping))
    wrapped = next(wrappers, None)
    others = tuple(str(key) for key in checkpoint if key != wrapped) if wrapped else ()
    state = checkpoint[wrapped] if wrapped else checkpoint
    if not state:
        raise ValueError(f'{name} holds an empty state dict')
    for key, value in state.items():
        dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
        if not (isinstance(key, str) and dense):
            kind = f'{value.layout}, {value.device}' if isinstance(value, Tensor) else type(value)
            raise ValueError(f'{name} is not a state dict from name to tensor: {key!r} is {kind}')
    return {key.removeprefix('module.'): value for key, value in state.items()}, others


def dataset_meta_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Metainfo of the data set in a file of mmengine or mmcv 1: ``classes``, ``palette``."""
    meta = content.get('meta') if 'state_dict' in content else None
    if not isinstance(meta, Mapping):
        return {}
    about = meta.get('dataset_meta')
    if not isinstance(about, Mapping):
        about = {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    return {str(key).lower(): value for key, value in about.items()}


def recognise(state: Mapping[str, Tensor]) -> Format | None:
    """Layout of a backbone's state dict; None if unknown."""

    def is_there(sign: str) -> bool:
        return any(fits(sign, key) for key in state)

    return next((layout for layout in FORMATS if all(map(is_there, layout.signs))), None)


def _whole_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Restore layer names changed by timm's ``features_only``."""
    prefix = 'model.' if all(key.startswith('model.') for key in state) else ''
    return {
        re.sub(r'^(layers|stages|stem)_([0-9]+)\.', r'\1.\2.', key.removeprefix(prefix)): value
        for key, value in state.items()
    }


def to_our_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename weights for a backbone ``model`` to our names.

    A state dict of unknown layout is returned unchanged.

    Raises:
        ValueError: if it belongs to another family than the model, or to an unsupported model.
    """
    state = _whole_names(state)
    layout = recognise(state)
    classes = {cls.__name__ for cls in type(model).__mro__}
    if layout is None or classes.isdisjoint(family.backbone for family in FAMILIES.values()):
        return state
    if FAMILIES[layout.family].backbone not in classes:
        raise ValueError(
            f'it is a {layout.name}, which becomes a {FAMILIES[layout.family].backbone}, not a '
            f'{type(model).__name__}'
        )
    renamed = layout.rename(state)
    found = renamed.state_dict | renamed.unknown
    return {key: value for key, value in found.items() if not is_classifier(key)}


def convert(state: Mapping[str, Tensor], to: str) -> Conversion:
    """Convert a state dict to mmdyn's names and layout.

    Args:
        state: of a backbone, or of a whole segmentor or detector with the backbone under
            ``backbone.``.
        to: name of a family in ``FAMILIES``.

    Raises:
        ValueError: if ``to`` is unknown, or the state dict is of another family, of unknown layout,
            incomplete, or of wrong shapes.
    """
    if to not in FAMILIES:
        raise ValueError(f'unknown family {to!r}; use one of {", ".join(FAMILIES)}')
    copies = [key for key in state if key.startswith('ema_')]
    own = {key: value for key, value in state.items() if key not in copies}
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in own) else ''
    parts = {key: value for key, value in own.items() if not key.startswith(prefix)}
    backbone = _whole_names({key[len(prefix) :]: own[key] for key in own if key not in parts})
    layout = recognise(backbone)
    known = f'known are: {"; ".join(layout.name for layout in FORMATS)}'
    if layout is None:
        raise ValueError(f'no known layout, {some(backbone)}; {known}')
    if layout.family != to:
        raise ValueError(f'this is a {layout.name}, which becomes {layout.family}, not {to}')
    renamed = layout.rename(backbone)
    if renamed.unknown:
        raise ValueError(
            f'looks like a {layout.name}, but has other keys, {some(renamed.unknown)}; {known}'
        )
    family, own = FAMILIES[to], dict(renamed.state_dict)
    heads = {key: own.pop(key) for key in renamed.state_dict if is_classifier(key)}
    dropped = renamed.dropped
    if prefix or LAYER_BEFORE in dropped.values():
        dropped = dropped | dict.fromkeys(heads, 'classifier')
    else:
        parts |= heads
    if parts and all(map(is_classifier, parts)):  # perhaps mmpretrain's
        parts = rename(parts, classifier_rules()).state_dict
    arguments = family.arguments_of(own)
    missing = check_architecture(own, family.backbone, arguments)
    return Conversion(
        format=layout.name,
        state_dict={prefix + key: value for key, value in own.items()} | parts,
        parts=tuple(parts),
        dropped={prefix + key: reason for key, reason in dropped.items()}
        | dict.fromkeys(copies, 'running average (EMA) of the weights'),
        arguments=arguments,
        predictors=count_predictors(own),
        missing=missing,
    )
