"""What checkpoints may hold beyond tensors, by the names that their pickles use.

Each is harmless whatever it is called with. Where the real thing is not (numpy takes whatever
memory a crafted type or attribute points to), another stands for it while a file is read, and
:func:`finish` puts the real one in its place.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import datetime
import functools
import os
import pathlib
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OneCycleParamScheduler


class _StandIn:
    """Something whose ``value`` is put in its place by :func:`finish`."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Dtype(_StandIn):
    """Stands for ``numpy.dtype``: takes a byte order and a unit of time, and no other state."""

    def __init__(self, code: str, *_: Any) -> None:
        self.value = np.dtype(code if type(code) is str else None)
        if self.value.hasobject:
            raise UnpicklingError('an array of objects')

    def __setstate__(self, state: tuple) -> None:
        _, order, subarray, names, fields, *_ = state
        if not subarray is names is fields is None:
            raise UnpicklingError('an array of records')
        if self.value.kind in 'mM':
            unit, number, *_ = state[8][1]
            if unit != b'generic':
                self.value = np.dtype(f'{self.value.char}8[{int(number)}{unit.decode()}]')
        self.value = self.value.newbyteorder(order)


class _Array(_StandIn):
    """Stands for ``numpy.ndarray``."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, in_columns, values = state
        if type(dtype) is not _Dtype:
            raise UnpicklingError('an array without a type')
        self.value.__setstate__((1, shape, dtype.value, in_columns, values))


class _Buffer(HistoryBuffer):
    """Stands for ``HistoryBuffer``.

    That makes arrays of what it is constructed with, and takes functions from a state for the
    whole class.
    """

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: dict) -> None:
        self._set_default_statistics()
        self.__dict__.update({key: state[key] for key in state if key != 'statistics_methods'})


def _scalar(dtype: _Dtype, *values: bytes) -> np.generic:
    return _multiarray().scalar(dtype.value, *values)


def _multiarray() -> Any:
    return (np._core if hasattr(np, '_core') else np.core).multiarray


_FACTORY = object()  # the key under which a defaultdict's factory waits


def _defaultdict(factory: Any = None) -> dict:
    return {_FACTORY: factory}  # torch fills plain dicts only


_SCHEDULER = object()
# Methods that mmengine's classes pickle by name.
_METHODS = (
    (_Buffer, HistoryBuffer, ('min', 'max', 'current', 'mean')),
    (_SCHEDULER, OneCycleParamScheduler, ('_annealing_cos', '_annealing_linear')),
)


def _method(owner: Any, name: str) -> Any:
    """What stands for ``getattr``, with which a file could reach, and call, anything."""
    for stand_in, real, names in _METHODS:
        if owner is stand_in and name in names:
            return getattr(real, name)
    raise UnpicklingError(f'GLOBAL getattr of {name!r} was not an allowed global')


@functools.lru_cache(maxsize=1)
def allowed() -> dict[str, Any]:
    """What stands for each name that a pickle may use, beside those that torch allows."""
    builtins = (
        bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice,
        str, tuple,
    )  # fmt: skip
    classes = (
        argparse.Namespace, collections.Counter, collections.OrderedDict, ConfigDict,
        datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
        MessageHub, torch.device,
    )  # fmt: skip
    scalars = {np.dtype(code).type for code in np.typecodes['All'] if code not in 'OV'}
    # The other system's paths can be made in their pure form only.
    posix, windows = pathlib.PurePosixPath, pathlib.PureWindowsPath
    here = type(pathlib.Path())
    paths = {
        'PosixPath': here if os.name != 'nt' else posix,
        'WindowsPath': here if os.name == 'nt' else windows,
        'PurePosixPath': posix,
        'PureWindowsPath': windows,
    }
    found = {f'{kind.__module__}.{kind.__name__}': kind for kind in (*builtins, *classes)} | {
        '_codecs.encode': codecs.encode,
        'builtins.getattr': _method,
        'collections.defaultdict': _defaultdict,
        f'{HistoryBuffer.__module__}.HistoryBuffer': _Buffer,
        f'{OneCycleParamScheduler.__module__}.OneCycleParamScheduler': _SCHEDULER,
        'numpy.dtype': _Dtype,
        'numpy.ndarray': _Array,
        'numpy.bool': _StandIn(np.bool_),
        'numpy.bool_': _StandIn(np.bool_),
    }
    found |= {f'numpy.{kind.__name__}': _StandIn(kind) for kind in scalars}
    for core in ('numpy.core', 'numpy._core'):  # of numpy 1 and 2
        found[f'{core}.multiarray._reconstruct'] = _Array
        found[f'{core}.multiarray.scalar'] = _scalar
    for module in ('pathlib', 'pathlib._local'):  # the latter of Python 3.13
        found |= {f'{module}.{name}': kind for name, kind in paths.items()}
    return found


def finish(content: Any) -> Any:
    """Put what is meant in place of what stands for it, all through a file's content.

    Raises:
        UnpicklingError: if an object has a special attribute, such as
            ``__array_interface__``, which tells numpy where in memory to read.
    """
    return _Finisher().finish(content)


_LEAVES = {bool, bytes, float, int, str, type(None), torch.Size, torch.device, torch.dtype}


class _Finisher:
    """Walks through a file's content, each object once."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}

    def finish(self, value: Any) -> Any:
        if type(value) in _LEAVES or (type(value) is torch.Tensor and not value.__dict__):
            return value
        if isinstance(value, _StandIn):
            return value.value
        if id(value) not in self._done:
            self._done[id(value)] = (value, value)  # kept alive: its id stays its own
            self._done[id(value)] = (value, self._finish(value))
        return self._done[id(value)][1]

    def _finish(self, value: Any) -> Any:
        if isinstance(value, _Buffer):
            value.__class__ = HistoryBuffer
        if isinstance(value, dict):
            self._finish_items(value, strict=isinstance(value, ConfigDict))
            if _FACTORY in value:
                return collections.defaultdict(value.pop(_FACTORY), value)
        elif isinstance(value, list):
            value[:] = [self.finish(item) for item in value]
        elif type(value) is tuple:
            return tuple(self.finish(item) for item in value)
        elif isinstance(value, set | frozenset):
            for item in value:
                self.finish(item)
        if not isinstance(value, type) and getattr(value, '__dict__', None):
            self._finish_items(value.__dict__, strict=True)
        return value

    def _finish_items(self, items: dict, strict: bool) -> None:
        for key, value in list(dict.items(items)):
            if strict and isinstance(key, str) and key.startswith('__') and key.endswith('__'):
                raise UnpicklingError(f'an object with an attribute {key!r}')
            if type(key) is not str:
                self.finish(key)
            if type(value) not in _LEAVES and (done := self.finish(value)) is not value:
                dict.__setitem__(items, key, done)
