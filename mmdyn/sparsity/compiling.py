"""Helpers for code that torch may run for its shapes alone, or trace into a graph."""

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
    """Whether torch is compiling or exporting; torch before 2.3 has it under another name."""
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def is_recorded() -> bool:
    """Whether ``torch.jit`` records a graph."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-any-return]


def is_traced(x: Tensor) -> bool:
    """Whether control flow must not depend on values: ``x`` is fake or meta, or is traced."""
    return is_compiling() or x.is_meta or isinstance(x, FakeTensor) or is_recorded()


def takes_gradient() -> bool:
    """Whether a gradient may be asked for; a graph of ``torch.jit`` is for inference alone."""
    return torch.is_grad_enabled() and not is_recorded()


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Leave what happens inside out of the graph that ``torch.jit`` records, if it does."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def made_once(maxsize: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Cache what a function makes of plain numbers; a graph that is traced has it as a constant.

    A CUDA graph that was captured by hand reads these tensors where they lie: it is good for as
    long as they are kept.

    Args:
        maxsize: how many results are kept, those last used.
    """

    def decorate(make: Callable[..., Made]) -> Callable[..., Made]:
        cached = functools.lru_cache(maxsize)(make)

        @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
        @functools.wraps(make)
        def remembered(*arguments: object) -> Made:
            # Real tensors whatever the caller runs in; an inference tensor could not take part
            # in a later backward pass.
            with torch.inference_mode(False), _disable_current_modes(), _untraced():
                return cached(*arguments)

        remembered.cache = cached
        return remembered  # type: ignore[no-any-return]

    return decorate


def fixed(*sizes: int) -> tuple[int, ...]:
    """Sizes as plain integers: what is traced is for these alone."""
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
    """How many rows a tensor has, as a plain integer, see :func:`fixed`."""
    (length,) = fixed(x.shape[0])
    return length


class lazy(Generic[Made]):
    """A property that is worked out on first use; torch.compile can't trace functools' own."""

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self.make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Made:
        if instance is None:
            return self  # type: ignore[return-value]
        made = self.make(instance)
        # Past a frozen dataclass; from now on the attribute is found before this one.
        object.__setattr__(instance, self.name, made)
        return made
