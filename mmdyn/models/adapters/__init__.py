"""Host models that train a sparse backbone; a host's are there if the host is installed."""

from __future__ import annotations

from mmengine.config import Config

from mmdyn.compat import has_host
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.registry import MODELS

# The stock model.type of each host, and what trains a sparse backbone in its place.
ADAPTERS: dict[str, str] = {}

if has_host('mmseg'):
    from mmdyn.models.adapters import mmseg  # noqa: F401

    ADAPTERS['EncoderDecoder'] = 'mmdyn.DynamicEncoderDecoder'


def is_dynamic(backbone: dict) -> bool:
    """Whether a backbone config names one of mmdyn's."""
    kind = backbone.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) and kind.startswith('mmdyn.') else kind
    return isinstance(kind, type) and issubclass(kind, DynamicBackbone)


def use_adapter(cfg: Config) -> str | None:
    """Put our adapter in place of a stock model that has a sparse backbone.

    Args:
        cfg: a whole training or test config; changed in place.

    Returns:
        What was changed, for the log; None if nothing was.
    """
    model = cfg.get('model') or {}
    stock = model.get('type')
    name = stock.rpartition('.')[2] if isinstance(stock, str) else None
    if (
        stock == f'mmdyn.{name}'
        or name not in ADAPTERS
        or not is_dynamic(model.get('backbone') or {})
    ):
        return None
    model['type'] = ADAPTERS[name]
    return (
        f"model.type '{stock}' -> '{model['type']}', which trains the sparse backbone "
        f"'{model['backbone']['type']}' with its keep-ratio loss"
    )


__all__ = ['ADAPTERS', 'is_dynamic', 'use_adapter']
