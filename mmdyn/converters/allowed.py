"""Objects that checkpoints may contain besides tensors, all harmless to construct.

Unsafe ones (numpy accepts arbitrary memory from a crafted type or attribute) are replaced by
stand-ins while a file is read; :func:`finish` puts in the real ones.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import datetime
import functools
import pathlib
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OneCycleParamScheduler


class _StandIn:
    def __init__(self, value: Any) -> None:
        self.value = value  # the real object


class _Dtype(_StandIn):
    """Accepts a byte order and a time unit as its only state."""

    def __init__(self, code: str, *_: Any) -> None:
        super().__init__(np.dtype(code if type(code) is str else 'O'))
        if self.value.hasobject:
            raise UnpicklingError('an array of objects')

    def __setstate__(self, state: tuple) -> None:
        _, order, *parts, _, _, flags = state[:8]
        if parts != [None] * 3 or flags != self.value.flags:
            raise UnpicklingError('an array of records')
        unit, number = state[8][1][:2] if self.value.kind in 'mM' else (b'generic', 1)
        if unit != b'generic':
            self.value = np.dtype(f'{self.value.char}8[{number:d}{unit.decode()}]')
        self.value = self.value.newbyteorder(order)


class _Array(_StandIn):
    def __init__(self, *_: Any) -> None:
        super().__init__(np.empty(0))

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, by_columns, values = state
        self.value.__setstate__((1, shape, dtype.value, by_columns, values))


class _Buffer(HistoryBuffer):
    """Calls no code of the file: creates no arrays and accepts no functions for the class."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: dict) -> None:
        self.__init__()
        self.__dict__.update({key: state[key] for key in state if key != 'statistics_methods'})


def _scalar(dtype: Any, values: bytes) -> np.generic:
    if type(dtype) is not _Dtype:
        raise UnpicklingError('a number without a type')
    return np.ndarray((), dtype.value, values)[()]


_FACTORY = object()  # key for a defaultdict's factory, as torch only fills dicts
_SCHEDULER = _StandIn(OneCycleParamScheduler)
# Class methods that mmengine's classes pickle as getattr(class, name).
_METHODS = {(_Buffer, name) for name in ('min', 'max', 'current', 'mean')}
_METHODS |= {(_SCHEDULER, name) for name in ('_annealing_cos', '_annealing_linear')}


def _method(owner: Any, name: str) -> Any:
    """Replaces ``getattr``, which would let a file reach and call anything."""
    if (owner, name) not in _METHODS:
        raise UnpicklingError(f'GLOBAL getattr of {name!r} was not an allowed global')
    return getattr(HistoryBuffer if owner is _Buffer else owner.value, name)


@functools.lru_cache(maxsize=1)
def allowed() -> dict[str, Any]:
    """Replacements for names in pickles, in addition to those that torch allows."""
    kinds = (
        bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice,
        str, tuple, argparse.Namespace, collections.Counter, collections.OrderedDict,
        datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
        ConfigDict, MessageHub, torch.device,
    )  # fmt: skip
    scalars = {np.dtype(code).type for code in np.typecodes['All'] if code not in 'OV'}
    found = {f'{kind.__module__}.{kind.__name__}': kind for kind in kinds} | {
        '_codecs.encode': codecs.encode,
        'builtins.getattr': _method,
        'collections.defaultdict': lambda factory=None: {_FACTORY: factory},
        f'{HistoryBuffer.__module__}.HistoryBuffer': _Buffer,
        f'{OneCycleParamScheduler.__module__}.OneCycleParamScheduler': _SCHEDULER,
        'numpy.dtype': _Dtype,
        'numpy.ndarray': _Array,
        **{f'numpy.{kind.__name__}': _StandIn(kind) for kind in scalars},
    }
    for core in ('core', '_core'):  # of numpy 1 and 2
        found[f'numpy.{core}.multiarray._reconstruct'] = _Array
        found[f'numpy.{core}.multiarray.scalar'] = _scalar
    # Paths of another system exist in pure form only.
    paths = dict(PosixPath=pathlib.PurePosixPath, WindowsPath=pathlib.PureWindowsPath)
    paths |= {kind.__name__: kind for kind in (*paths.values(), type(pathlib.Path()))}
    for module in ('pathlib', 'pathlib._local'):  # the latter of Python 3.13
        found |= {f'{module}.{name}': kind for name, kind in paths.items()}
    return found


_LEAVES = {bool, bytes, float, int, str, type(None), torch.Size, torch.device, torch.dtype}


def finish(value: Any, done: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """Replace stand-ins by the real objects throughout a file's content.

    Refuses special attributes such as ``__array_interface__``, through which numpy reads memory.
    """
    if type(value) in _LEAVES or (type(value) is torch.Tensor and not value.__dict__):
        return value
    if isinstance(value, _StandIn):
        return value.value
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)][0]
    done[id(value)] = value, value  # the second one is kept alive, so that its id stays unique
    result = value
    if isinstance(value, dict):
        _finish_items(value, isinstance(value, ConfigDict), done)
        if _FACTORY in value:
            result = collections.defaultdict(value.pop(_FACTORY), value)
    elif isinstance(value, list):
        value[:] = [finish(item, done) for item in value]
    elif isinstance(value, tuple | set | frozenset):
        result = type(value)(finish(item, done) for item in value)
    elif isinstance(value, _Buffer):
        value.__class__ = HistoryBuffer
    if not isinstance(value, type) and getattr(value, '__dict__', None):
        _finish_items(value.__dict__, True, done)
    done[id(value)] = result, value
    return result


def _finish_items(items: dict, are_attributes: bool, done: dict[int, tuple[Any, Any]]) -> None:
    for key, value in list(dict.items(items)):
        if are_attributes and isinstance(key, str) and key[:2] == key[-2:] == '__':
            raise UnpicklingError(f'an object with an attribute {key!r}')
        if type(key) is not str:
            finish(key, done)
        if type(value) not in _LEAVES and (real := finish(value, done)) is not value:
            dict.__setitem__(items, key, real)
