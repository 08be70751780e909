"""Helpers for code that may run on fake tensors or be traced into a graph."""

from __future__ import annotations

import contextlib
import functools
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

Made = TypeVar('Made')


def is_compiling() -> bool:
    """Whether torch is compiling or exporting (torch before 2.3 uses another name for it)."""
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def is_recorded() -> bool:
    """Whether ``torch.jit`` is tracing."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-any-return]


def is_traced(x: Tensor) -> bool:
    """Whether control flow must not depend on values: ``x`` is fake or meta, or being traced."""
    return is_compiling() or x.is_meta or isinstance(x, FakeTensor) or is_recorded()


def takes_gradient() -> bool:
    """Whether gradients may be needed; ``torch.jit`` traces are for inference only."""
    return torch.is_grad_enabled() and not is_recorded()


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Keep what runs inside out of a ``torch.jit`` trace."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def made_once(maxsize: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Cache the tensors that a function makes of plain numbers; constants in traced graphs.

    A manually captured CUDA graph reads these tensors by address, so it is valid only while they
    stay in the cache.

    Args:
        maxsize: number of results kept, least recently used first out.
    """

    def decorate(make: Callable[..., Made]) -> Callable[..., Made]:
        cached = functools.lru_cache(maxsize)(make)

        @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
        @functools.wraps(make)
        def remembered(*arguments: object) -> Made:
            # Always real tensors. Inference tensors could not be used in a later backward pass.
            with torch.inference_mode(False), _disable_current_modes(), _untraced():
                return cached(*arguments)

        remembered.cache = cached
        return remembered  # type: ignore[no-any-return]

    return decorate


def fixed(*sizes: int) -> tuple[int, ...]:
    """Sizes as plain integers; a traced graph is specialised to them."""
    if not is_recorded():
        return tuple(map(operator.index, sizes))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return tuple(map(int, sizes))


def hw_of(x: Tensor) -> tuple[int, int]:
    """(H, W) of (..., H, W) as plain integers, see :func:`fixed`."""
    height, width = fixed(*x.shape[-2:])
    return height, width


def length_of(x: Tensor) -> int:
    """Size of the first dimension as a plain integer, see :func:`fixed`."""
    (length,) = fixed(x.shape[0])
    return length


class lazy(Generic[Made]):
    """Like ``functools.cached_property``, which torch.compile can't trace."""

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self.make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Made:
        if instance is None:
            return self  # type: ignore[return-value]
        made = self.make(instance)
        # Bypasses a frozen dataclass; later look-ups find the attribute before this descriptor.
        object.__setattr__(instance, self.name, made)
        return made
