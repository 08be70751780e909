"""Makes every loader of checkpoints, of mmengine and the hosts, read them as data only."""

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

# All loading goes through these; the last one exists on the maintained line only.
_LOADERS = (
    (torch, 'load'),
    (torch.serialization, 'load'),
    (mmengine_loading, '_safe_torch_load'),
)

_lock = threading.Lock()
_guards = 0
_originals: list[Any] = []  # the replaced loaders, while guarded
_everywhere: list[bool] = []  # trust of the process-wide guards
_here: ContextVar[bool | None] = ContextVar('trust', default=None)  # and of this thread's


@contextlib.contextmanager
def checkpoints_as_data(trust: bool | None = None, *, everywhere: bool = False) -> Iterator[None]:
    """Make every checkpoint loader read files like ``read_checkpoint``.

    mmengine's own loader falls back to unpickling if that fails, which runs code in the file.
    ``meta.config`` of checkpoints from mmcv 1 is removed unless trusted: on resume mmengine runs it
    as a Python file.

    Args:
        trust: read files without restrictions; None = like the enclosing guard, else False.
        everywhere: in all threads of the process.
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
    """Read a checkpoint to the CPU, as data only unless an enclosing guard trusts files.

    Args:
        source: a path; an address known to mmengine (``https://...``, ``torchvision://...``,
            ``open-mmlab://...``); or ``timm://NAME``, a pretrained model of timm.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if an address can't be read.
        ValueError: see :func:`mmdyn.converters.checkpoint_files.read_checkpoint`; or timm has no
            such model.
    """
    if not is_address(source):
        return read_checkpoint(source, bool(_trusts()))
    scheme, _, name = source.partition('://')
    try:
        with checkpoints_as_data():
            if scheme != 'timm':
                return CheckpointLoader.load_checkpoint(source, 'cpu')
            import timm  # takes a second

            if not timm.is_model(name):
                raise ValueError(
                    f'timm {timm.__version__} has no model {name!r}; '
                    "timm.list_models('*swin*') shows which it has"
                )
            return timm.create_model(name, pretrained=True).state_dict()
    except (KeyError, ValueError) as error:
        raise ValueError(f'{source}: {error}') from error


def _trusts() -> bool | None:
    """Whether files are trusted here; None without a guard."""
    here = _here.get()
    return _everywhere[-1] if here is None and _everywhere else here


def _guarded_load(
    original: Callable[..., Any], f: Any, map_location: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Replacement of a loader; calls the original without a guard, as in other threads."""
    trust = _trusts()
    if trust is None:
        return original(f, map_location, *args, **kwargs)
    content = read_checkpoint(f, trust, map_location)
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict) and not trust:
        meta.pop('config', None)
    return content
