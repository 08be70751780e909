"""Host models that train a sparse backbone; a host's are there if the host is installed."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS

from mmdyn.compat import has_host
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.registry import MODELS

# The stock model.type of each host, and what trains a sparse backbone in its place.
ADAPTERS: dict[str, str] = {}

if has_host('mmseg'):
    from mmdyn.models.adapters import mmseg  # noqa: F401

    ADAPTERS['EncoderDecoder'] = 'mmdyn.DynamicEncoderDecoder'

if has_host('mmdet'):
    from mmdyn.models.adapters import mmdet

    ADAPTERS |= {name: f'mmdyn.{cls.__name__}' for name, cls in mmdet.DETECTORS.items()}


def is_dynamic(backbone: dict) -> bool:
    """Whether a backbone config names one of mmdyn's."""
    kind = backbone.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) and kind.startswith('mmdyn.') else kind
    return isinstance(kind, type) and issubclass(kind, DynamicBackbone)


def use_adapter(cfg: Config) -> str | None:
    """Put our adapter in place of a stock model that has a sparse backbone.

    A detector of your own is adapted too, if it inherits how it reads its images.

    Args:
        cfg: a whole training or test config; changed in place.

    Returns:
        What was changed, for the log; None if nothing was.

    Raises:
        ValueError: if the model is a detector that can't be adapted.
    """
    model = cfg.get('model') or {}
    stock = model.get('type')
    name = stock.rpartition('.')[2] if isinstance(stock, str) else None
    if name is None or stock == f'mmdyn.{name}' or not is_dynamic(model.get('backbone') or {}):
        return None
    if name not in ADAPTERS and not _adapt_detector(stock, cfg.get('default_scope')):
        return None
    model['type'] = ADAPTERS[name]
    return (
        f"model.type '{stock}' -> '{model['type']}', which trains the sparse backbone "
        f"'{model['backbone']['type']}' with its keep-ratio loss"
    )


def _adapt_detector(kind: str, scope: str | None) -> bool:
    """Make the adapter of a detector that mmdet doesn't know of; False if it is none."""
    if not has_host('mmdet'):
        return False
    with ROOT_MODELS.switch_scope_and_registry(scope) as registry:
        cls: Any = registry.get(kind)
    if not isinstance(cls, type) or not issubclass(cls, mmdet.BaseDetector):
        return False
    ADAPTERS[cls.__name__] = f'mmdyn.{mmdet.sparse_detector(cls).__name__}'
    return True


__all__ = ['ADAPTERS', 'is_dynamic', 'use_adapter']
