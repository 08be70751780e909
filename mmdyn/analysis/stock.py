"""A host's own dense model beside a sparse one of ours, with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from mmdyn.analysis.loading import LoadedModel, build_model
from mmdyn.config_parts import type_name
from mmdyn.models.adapters.mixin import SparseTrainingMixin

# Ours, and the host's of the same parameter names.
STOCK_BACKBONES = {'DynamicSwin': 'SwinTransformer'}
STOCK_PARTS = {
    'DynamicUPerHead': 'UPerHead',
    'DynamicFPN': 'FPN',
    'DynamicRPNHead': 'RPNHead',
}
# Arguments that the hosts' don't have: of backbones, of parts that go by tiles, of adapters.
_SPARSE = ('keep_ratios', 'sparse_stage', 'sparse_blocks', 'policy')
_TILES = ('coarse_stride', 'tile_size', 'tile_ratio', 'policy', 'keep_ratio_loss', 'distill_loss')
_TILES += ('freeze_dense', 'finest_stride', 'fine_stride')
_ADAPTER = ('host', 'keep_ratio_loss', 'teacher', 'feature_distill_loss', 'logit_distill_loss')


def _without(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in names}


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
    stock = {'type': f'{host}.{STOCK_BACKBONES[kind]}', 'init_cfg': None}
    return _without(backbone, _SPARSE) | stock


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
    return _without(part, _TILES) | {'type': STOCK_PARTS[type_name(part)]}


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
    # Stricter than it looks: what the dense model lacks are predictors and fast paths.
    missing, _ = stock.load_state_dict(state, strict=False)
    lost = [name for name in missing if not name.endswith('relative_position_index')]
    if lost:
        raise ValueError(f'the dense model has parameters that the sparse one lacks: {lost[:3]}')
    stock.eval()  # which some of the hosts' backbones return nothing from
    return stock


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
    model = _without(cfg.model, _ADAPTER)
    own = type(loaded.model).__mro__
    model['type'] = next(cls for cls in own if not issubclass(cls, SparseTrainingMixin))
    model['backbone'] = stock_backbone_config(model['backbone'], host)
    for name in ('decode_head', 'neck', 'rpn_head'):
        if name in model:
            model[name] = stock_part_config(model[name])
    cfg.model = model
    stock = load_dense_part(build_model(cfg), loaded.model.state_dict())
    return stock.to(loaded.device)
