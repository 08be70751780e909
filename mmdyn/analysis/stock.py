"""A host's own dense model beside a sparse one of ours, with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmdyn.config_parts import type_name
from mmdyn.engine.loading import LoadedModel, build_model
from mmdyn.models.adapters.mixin import SparseTrainingMixin
from mmdyn.models.weights import load_weights

# Ours, and the host's of the same parameter names.
STOCK_BACKBONES = {'DynamicSwin': 'SwinTransformer'}
STOCK_PARTS = {
    'DynamicUPerHead': 'UPerHead',
    'DynamicFPN': 'FPN',
    'DynamicRPNHead': 'RPNHead',
}
_TILE_ARGUMENTS = (
    'coarse_stride',
    'tile_size',
    'tile_ratio',
    'policy',
    'keep_ratio_loss',
    'distill_loss',
    'freeze_dense',
    'finest_stride',
    'fine_stride',
)
_SPARSE_ARGUMENTS = (
    'keep_ratios',
    'sparse_stage',
    'sparse_blocks',
    'policy',
)
_ADAPTER_ARGUMENTS = (
    'host',
    'keep_ratio_loss',
    'teacher',
    'feature_distill_loss',
    'logit_distill_loss',
)


def stock_backbone_config(backbone: Mapping[str, Any], host: str) -> dict[str, Any]:
    """The config of the host's own backbone that equals one of ours at keep ratio 1.

    Args:
        backbone: config of a sparse backbone.
        host: ``'mmseg'`` or ``'mmdet'``.

    Raises:
        ValueError: if the host has none with the same parameter names.
    """
    kind = type_name(backbone)
    if kind not in STOCK_BACKBONES or host not in ('mmseg', 'mmdet'):
        raise ValueError(
            f'{host} has no dense backbone with the parameter names of {kind!r}; there is one for '
            f'{", ".join(STOCK_BACKBONES)} in mmseg and mmdet'
        )
    kept = {key: value for key, value in backbone.items() if key not in _SPARSE_ARGUMENTS}
    return {**kept, 'type': f'{host}.{STOCK_BACKBONES[kind]}', 'init_cfg': None}


def stock_part_config(part: Any) -> Any:
    """The config of the host's own head or neck, if it is one of ours that goes by tiles.

    Raises:
        ValueError: if the host has none that could have its weights.
    """
    if not isinstance(part, Mapping) or type_name(part) not in STOCK_PARTS:
        return part
    finest = part.get('finest_stride', 4)
    if (part.get('fine_stride') or finest) != finest:
        raise ValueError(
            f"with fine_stride={part['fine_stride']} the head is not the host's, whose finest map "
            f'has stride {finest}: there is no stock model with its weights to compare with'
        )
    kept = {key: value for key, value in part.items() if key not in _TILE_ARGUMENTS}
    return {**kept, 'type': STOCK_PARTS[type_name(part)]}


def load_dense_part(stock: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load the dense part of a sparse model's weights into a host's dense model.

    Args:
        stock: the dense model.
        state: the sparse one's state dict.

    Returns:
        The dense model, in evaluation mode.

    Raises:
        ValueError: if it has parameters that the sparse one lacks.
    """
    if lost := load_weights(stock, state, 'the sparse model').missing:
        raise ValueError(f'the dense model has parameters that the sparse one lacks: {lost[:3]}')
    stock.eval()  # which some of the hosts' backbones return nothing from
    return stock


def build_stock_backbone(
    backbone: Mapping[str, Any], host: str, state: Mapping[str, Tensor]
) -> nn.Module:
    """Build the host's own backbone with a sparse one's weights.

    Args:
        backbone: config of the sparse backbone.
        host: ``'mmseg'`` or ``'mmdet'``.
        state: the sparse backbone's state dict.

    Raises:
        ValueError: see :func:`stock_backbone_config` and :func:`load_dense_part`.
    """
    cfg = stock_backbone_config(backbone, host)
    init_default_scope(host)
    return load_dense_part(MODELS.build(cfg), state)


def build_stock_model(loaded: LoadedModel) -> nn.Module:
    """Build the host's own whole model, dense, with the weights of a sparse one.

    Args:
        loaded: with a sparse backbone, under our adapter.

    Raises:
        ValueError: see :func:`stock_backbone_config`, :func:`stock_part_config` and
            :func:`load_dense_part`.
    """
    cfg: Config = copy.deepcopy(loaded.cfg)
    host = cfg.get('default_scope')
    model = {key: value for key, value in cfg.model.items() if key not in _ADAPTER_ARGUMENTS}
    own = type(loaded.model).__mro__
    model['type'] = next(cls for cls in own if not issubclass(cls, SparseTrainingMixin))
    model['backbone'] = stock_backbone_config(model['backbone'], host)
    for name in ('decode_head', 'neck', 'rpn_head'):
        if name in model:
            model[name] = stock_part_config(model[name])
    cfg.model = model
    stock = load_dense_part(build_model(cfg), loaded.model.state_dict())
    return stock.to(loaded.device)


def deviation(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Largest difference of two backbones' maps, relative to the largest value of each map.

    Args:
        ours, theirs: as many maps of the same shapes.

    Raises:
        ValueError: if their number or shapes differ.
    """
    shapes = [[tuple(feat.shape) for feat in feats] for feats in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'maps of different shapes: {shapes[0]} and {shapes[1]}')
    pairs = list(zip(ours, theirs, strict=True))
    return max((torch.dist(a, b, p=float('inf')) / b.abs().max()).item() for a, b in pairs)
