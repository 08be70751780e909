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
from mmdyn.converters.checkpoint_files import read_checkpoint

# All loading goes through these; the last one is on the maintained line alone.
_LOADERS = (
    (torch, 'load'),
    (torch.serialization, 'load'),
    (mmengine_loading, '_safe_torch_load'),
)

_lock = threading.Lock()
_guards = 0
_originals: list[Any] = []  # of the loaders that are replaced, while there is a guard
_everywhere: list[bool] = []  # whether to trust, of the guards of the whole process
_here: ContextVar[bool | None] = ContextVar('trust', default=None)  # and of this thread's


@contextlib.contextmanager
def checkpoints_as_data(trust: bool | None = None, *, everywhere: bool = False) -> Iterator[None]:
    """Have every loader of checkpoints read them as ``read_checkpoint`` does.

    Where reading as data fails, mmengine's own loader unpickles, which runs code in the file.
    ``meta.config`` of trainings with mmcv 1 is taken out unless it is trusted: mmengine runs that
    text, a Python file, on resuming.

    Args:
        trust: Read files whatever they hold; None = as the enclosing guard, else False.
        everywhere: In all threads of the process.
    """
    global _guards
    trust = bool(_trusts()) if trust is None else trust
    with _lock:
        _guards += 1
        for owner, name in _LOADERS if _guards == 1 else ():
            if hasattr(owner, name):
                _originals.append((owner, name, before := getattr(owner, name)))
                setattr(owner, name, functools.partial(_guarded_load, before))
    _everywhere.extend([trust] * everywhere)
    token = _here.set(trust)
    try:
        yield
    finally:
        _here.reset(token)
        del _everywhere[len(_everywhere) - everywhere :]
        with _lock:
            _guards -= 1
            while not _guards and _originals:
                owner, name, before = _originals.pop()
                setattr(owner, name, before)


def load_checkpoint(source: str) -> Any:
    """Reads a checkpoint onto the CPU; data only, unless a guard around it trusts files.

    Args:
        source: A path; an address that mmengine knows (``https://...``, ``torchvision://...``,
            ``open-mmlab://...``); or ``timm://NAME``, a pretrained model that timm fetches.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If an address can't be read.
        ValueError: As :func:`mmdyn.converters.checkpoint_files.read_checkpoint`; or there is no
            model of the name.
    """
    if not is_address(source):
        return read_checkpoint(source, bool(_trusts()))
    scheme, _, name = source.partition('://')
    try:
        with checkpoints_as_data():
            if scheme != 'timm':
                return CheckpointLoader.load_checkpoint(source, 'cpu')
            import timm  # here, for it takes a second

            if not timm.is_model(name):
                raise ValueError(
                    f'timm {timm.__version__} has no model {name!r}; '
                    "timm.list_models('*swin*') shows which it has"
                )
            return timm.create_model(name, pretrained=True).state_dict()
    except (KeyError, ValueError) as error:
        raise ValueError(f'{source}: {error}') from error


def _trusts() -> bool | None:
    """Whether files are trusted here; None where there is no guard."""
    here = _here.get()
    return _everywhere[-1] if here is None and _everywhere else here


def _guarded_load(
    original: Callable[..., Any], f: Any, map_location: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Replaces a loader; where there is no guard, as in another thread, calls the original."""
    trust = _trusts()
    if trust is None:
        return original(f, map_location, *args, **kwargs)
    content = read_checkpoint(f, trust, map_location)
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict) and not trust:
        meta.pop('config', None)
    return content
