"""A host's own dense model with the weights of a sparse one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import nn

from mmdyn.config_parts import type_name
from mmdyn.engine.loading import LoadedModel, build_model
from mmdyn.models.adapters.mixin import SparseTrainingMixin
from mmdyn.models.weights import load_weights

# The host's modules with mmdyn's parameter names.
STOCK_PARTS = {
    'DynamicSwin': 'SwinTransformer',
    'DynamicUPerHead': 'UPerHead',
    'DynamicFPN': 'FPN',
    'DynamicRPNHead': 'RPNHead',
}
# Arguments that only mmdyn's have.
_ARGUMENTS = {
    'keep_ratios', 'sparse_stage', 'sparse_blocks', 'policy',
    'coarse_stride', 'tile_size', 'tile_ratio', 'keep_ratio_loss', 'distill_loss', 'freeze_dense',
    'finest_stride', 'fine_stride',
}  # fmt: skip
_ADAPTER_ARGUMENTS = {
    'host', 'keep_ratio_loss', 'teacher', 'feature_distill_loss', 'logit_distill_loss'
}  # fmt: skip


def stock_part_config(part: Any) -> Any:
    """Config of the host's own backbone, head or neck in place of mmdyn's.

    Raises:
        ValueError: if the host has none that fits the weights.
    """
    if not isinstance(part, Mapping) or type_name(part) not in STOCK_PARTS:
        return part
    finest = part.get('finest_stride', 4)
    if (part.get('fine_stride') or finest) != finest:
        raise ValueError(
            f"with fine_stride={part['fine_stride']} the head differs from the host's, whose "
            f'finest map has stride {finest}: no stock model can have its weights'
        )
    kept = {key: value for key, value in part.items() if key not in _ARGUMENTS}
    return {**kept, 'type': STOCK_PARTS[type_name(part)]}


def build_stock_model(loaded: LoadedModel) -> nn.Module:
    """Build the host's own dense model with the weights of a sparse one.

    Raises:
        ValueError: if the host has no backbone, head or neck with the same parameter names.
    """
    cfg: Config = copy.deepcopy(loaded.cfg)
    model = {key: value for key, value in cfg.model.items() if key not in _ADAPTER_ARGUMENTS}
    own = type(loaded.model).__mro__
    model['type'] = next(cls for cls in own if not issubclass(cls, SparseTrainingMixin))
    for name in ('backbone', 'decode_head', 'neck', 'rpn_head'):
        if name in model:
            model[name] = stock_part_config(model[name])
    kind = type_name(model['backbone'])
    if kind not in STOCK_PARTS.values():
        raise ValueError(
            f'{cfg.default_scope} has no dense backbone with the parameter names of {kind!r}; '
            "there is one for 'DynamicSwin' in mmseg and mmdet"
        )
    cfg.model = model
    stock = build_model(cfg)
    if lost := load_weights(stock, loaded.model.state_dict(), 'the sparse model').missing:
        raise ValueError(f'the dense model has parameters that the sparse one lacks: {lost[:3]}')
    stock.eval()  # not chained: returns None in some of the hosts' backbones
    return stock.to(loaded.device)
