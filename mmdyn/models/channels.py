"""Check that neck and heads read the channels that the backbone returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def check_channels(model: nn.Module) -> None:
    """Compare channels of backbone, neck and heads; modules that don't declare any are skipped.

    Raises:
        ValueError: if a map is missing or has another number of channels.
    """
    backbone = model.backbone
    widths = getattr(backbone, 'num_features', None)
    if widths is None:
        return
    maps = [widths if isinstance(widths, int) else widths[index] for index in backbone.out_indices]
    returns = f'the backbone returns maps of {maps} channels (out_indices {backbone.out_indices})'
    if model.with_neck:
        reads = getattr(model.neck, 'in_channels', None)
        if isinstance(reads, list | tuple) and sorted(reads) != sorted(maps):
            raise ValueError(f'{returns}, but model.neck.in_channels is {list(reads)}: change one')
        return
    for name, head in _heads(model):
        chosen = _as_list(head.in_index)
        if not all(-len(maps) <= index < len(maps) for index in chosen):
            raise ValueError(f'{returns}, but model.{name}.in_index is {head.in_index}: change one')
        if not type(head).__module__.startswith(('mmseg.', 'mmdyn.')):
            continue  # may combine maps in unknown ways
        # Heads that concatenate maps store only the sum of channels.
        if sum(maps[index] for index in chosen) != sum(_as_list(head.in_channels)):
            raise ValueError(
                f'{returns}, but model.{name}.in_channels is {head.in_channels} for in_index '
                f'{head.in_index}: change one'
            )


def _heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Heads of mmseg, single ones or several, with names."""
    for name in ('decode_head', 'auxiliary_head'):
        part = getattr(model, name, None)
        for head in part if isinstance(part, nn.ModuleList) else [part]:
            if hasattr(head, 'in_index') and hasattr(head, 'in_channels'):
                yield name, head


def _as_list(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value]
