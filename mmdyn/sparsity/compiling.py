"""What differs while a program is made of what runs."""

from __future__ import annotations

from typing import Any

import torch


def is_compiling() -> bool:
    """Whether torch is compiling or exporting; torch before 2.3 has it under another name."""
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def remember(cached: Any, *arguments: Any) -> Any:
    """Call a function that makes tensors and has an ``lru_cache``; if traced, without the cache."""
    # What is traced holds stand-ins for tensors, of no use to anyone else.
    if is_compiling():
        return cached.__wrapped__(*arguments)
    # An inference tensor could not take part in a later backward pass.
    with torch.inference_mode(False):
        return cached(*arguments)
