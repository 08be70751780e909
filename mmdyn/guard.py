"""The one guard: whatever loads a checkpoint, mmengine or a host, reads it as data."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_loading

from mmdyn.checks import is_address
from mmdyn.converters.reading import read_checkpoint

# By which everything loads: the last one on the maintained line alone.
_DOORS = (
    (torch, 'load'),
    (torch.serialization, 'load'),
    (mmengine_loading, '_safe_torch_load'),
)

_lock = threading.Lock()
_guards = 0
_behind: list[Any] = []  # while there is a guard, the doors and what was there
_everywhere: list[bool] = []  # whether to trust, of the guards of the whole process
_here: ContextVar[bool | None] = ContextVar('trust', default=None)  # and of this thread's


@contextlib.contextmanager
def checkpoints_as_data(trust: bool | None = None, *, everywhere: bool = False) -> Iterator[None]:
    """Has whatever loads a checkpoint meanwhile read it as ``read_checkpoint`` does.

    mmengine's own loader reads plainly, and runs what a file brings, where reading data fails.
    What trainings with mmcv 1 left under ``meta.config`` is taken out unless it is trusted:
    mmengine runs that text, a Python file, on resuming.

    Args:
        trust: Read files whatever they hold; None for what the guard around says, else False.
        everywhere: In all threads of the process.
    """
    global _guards
    trust = bool(_trusts()) if trust is None else trust
    with _lock:
        _guards += 1
        for owner, name in _DOORS if _guards == 1 else ():
            if hasattr(owner, name):
                _behind.append((owner, name, before := getattr(owner, name)))
                setattr(owner, name, functools.partial(_load_as_told, before))
    _everywhere.extend([trust] * everywhere)
    token = _here.set(trust)
    try:
        yield
    finally:
        _here.reset(token)
        del _everywhere[len(_everywhere) - everywhere :]
        with _lock:
            _guards -= 1
            while not _guards and _behind:
                owner, name, before = _behind.pop()
                setattr(owner, name, before)


def load_checkpoint(source: str, map_location: Any = 'cpu') -> Any:
    """Reads a checkpoint from wherever mmengine's loader would; data only unless trusted.

    Whether it is, :func:`checkpoints_as_data` around it says.

    Args:
        source: A path, or an address: ``https://...``, ``torchvision://...``, ``open-mmlab://...``.
        map_location: Where its tensors go, as for ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If an address can't be read.
        ValueError: As :func:`mmdyn.converters.reading.read_checkpoint`; or a model zoo has no
            model of the name.
    """
    if not is_address(source):
        return read_checkpoint(source, bool(_trusts()), map_location)
    try:
        with checkpoints_as_data():
            return CheckpointLoader.load_checkpoint(source, map_location)
    except (KeyError, ValueError) as error:
        raise ValueError(f'{source}: {error}') from error


def _trusts() -> bool | None:
    """Whether files are trusted here; None where there is no guard."""
    here = _here.get()
    return _everywhere[-1] if here is None and _everywhere else here


def _load_as_told(
    before: Callable[..., Any], f: Any, map_location: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Stands in a door; where there is no guard, as in another thread, ``before`` is behind it."""
    trust = _trusts()
    if trust is None:
        return before(f, map_location, *args, **kwargs)
    content = read_checkpoint(f, trust, map_location)
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict) and not trust:
        meta.pop('config', None)
    return content
