"""Helpers for code that ``torch.compile`` or ``torch.export`` may trace."""

from __future__ import annotations

from typing import Any

import torch


def is_compiling() -> bool:
    """Whether torch is compiling or exporting; torch before 2.3 has it under another name."""
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def remember(cached: Any, *arguments: Any) -> Any:
    """Call a function with an ``lru_cache`` that makes tensors; while traced, without the cache."""
    # What is traced holds stand-ins for tensors, of no use to anyone else.
    if is_compiling():
        return cached.__wrapped__(*arguments)
    # An inference tensor could not take part in a later backward pass.
    with torch.inference_mode(False):
        return cached(*arguments)
