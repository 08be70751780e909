"""Decode heads that spend their time where it matters; those of a host that is installed."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmdyn.compat import has_host

if has_host('mmseg'):
    from mmdyn.models.heads.uper_head import DynamicUPerHead  # noqa: F401


def tile_head(model: nn.Module) -> Any | None:
    """A model's decode head, if it is one of ours that chooses tiles."""
    head = getattr(model, 'decode_head', None)
    return head if hasattr(head, 'set_tile_ratio') else None
