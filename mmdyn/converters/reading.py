"""Reading checkpoints from files and addresses, as data.

A ``.pth`` file is a pickle: reading it plainly runs whatever code its author put in. So files are
read with torch's restricted unpickler (``weights_only=True``), which is told what mmengine's
checkpoints hold beyond tensors. mmengine's own loader reads plainly where that fails;
:func:`checkpoints_as_data` is the guard that has it, and everything else, read as here.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import os
import pickle
import re
import stat
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_loading

from mmdyn.converters.allowed import allowed, finish

# What mmengine's loader takes as an address and not as a path: https://, torchvision:// ...
_URL = re.compile(r'^[A-Za-z][A-Za-z0-9+.-]+:(\w+:)?//')
_FORBIDDEN = re.compile(r'GLOBAL (.*?) (?:was not an allowed|whose module)', re.DOTALL)
_REMEDY = (
    'If you trust where it comes from, pass --trust-checkpoint (trust_checkpoint=True in Python)'
)
_SHORT = 200  # characters of what a file says that a message shows
# By which everything loads: the second one on the maintained line alone.
_DOORS = ((torch, 'load'), (mmengine_loading, '_safe_torch_load'))
_torch_load = torch.load

_lock = threading.RLock()
_behind: list[Any] = []  # the doors' own functions while there is a guard
_guards = 0
_process: list[bool] = []  # whether to trust, of the guards of the whole process
_here: ContextVar[bool | None] = ContextVar('trust', default=None)  # and of this thread's guard


class DamagedCheckpointError(ValueError):
    """A file that is no checkpoint, or only a part of one."""


@contextlib.contextmanager
def checkpoints_as_data(trust: bool | None = None, *, everywhere: bool = False) -> Iterator[None]:
    """Has whatever loads a checkpoint meanwhile read it as :func:`read_checkpoint` does.

    That goes for mmengine's loader, for ``init_cfg`` and for each ``torch.load`` of a host; other
    threads are left alone. What a training with mmcv 1 left under ``meta.config`` is taken out
    of what isn't trusted: mmengine runs that text, a Python file, on resuming.

    Args:
        trust: Read files whatever they hold; None for what the guard around says, else False.
        everywhere: In all threads of the process.
    """
    trust = bool(_trusts()) if trust is None else trust
    _shut()
    if everywhere:
        _process.append(trust)
    token = _here.set(trust)
    try:
        yield
    finally:
        _here.reset(token)
        if everywhere:
            _process.pop()
        _open()


def _shut() -> None:
    global _guards
    with _lock:
        _guards += 1
        if _guards == 1:
            doors = [door for door in _DOORS if hasattr(*door)]
            _behind.extend((owner, name, getattr(owner, name)) for owner, name in doors)
            for owner, name in doors:
                setattr(owner, name, _load_as_told)


def _open() -> None:
    global _guards
    with _lock:
        _guards -= 1
        while not _guards and _behind:
            setattr(*_behind.pop())


def _trusts() -> bool | None:
    """Whether files are trusted here; None where there is no guard."""
    here = _here.get()
    return here if here is not None or not _process else _process[-1]


def _load_as_told(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Stands in for ``torch.load``."""
    trust = _trusts()
    if trust is None:
        return _torch_load(f, map_location, *args, **kwargs)
    if hasattr(f, 'read'):
        content = _read(f, 'a checkpoint', map_location, trust)
    else:
        content = read_checkpoint(f, trust, map_location)
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict) and not trust:
        meta.pop('config', None)
    return content


def check_checkpoint(path: str | os.PathLike, trust: bool | None = None) -> None:
    """Checks that a checkpoint can be read: early, and whether or not something else will.

    Args:
        path: A local path. An address such as ``https://...`` passes: what lies there
            is read as data when it is loaded.
        trust: As for :func:`read_checkpoint`; then all that is checked is that the file is
            there, and no part of a zip file.

    Raises:
        FileNotFoundError, PermissionError, ValueError: As :func:`read_checkpoint`.
    """
    if is_address(os.fspath(path)):
        return
    if not (_trusts() if trust is None else trust):
        read_checkpoint(path, False)
        return
    with _opened(path) as stream, _damage(_shown(path)):
        if _is_zip(stream):
            torch._C.PyTorchFileReader(stream)


def read_checkpoint(
    path: str | os.PathLike, trust: bool | None = None, map_location: Any = 'cpu'
) -> Any:
    """Reads a checkpoint file; data only unless trusted.

    With torch before 2.6 Python's unpickler is restricted to the same names, and only files of
    today's format (zip) are read.

    Args:
        path: A local file.
        trust: Read it even if that runs code which the file brings; None for what the
            :func:`checkpoints_as_data` around says, else False.
        map_location: Where its tensors go, as for ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        DamagedCheckpointError: If the file is damaged or no checkpoint.
        ValueError: If ``path`` is an address, or the file holds more than data and
            ``trust`` is False.
    """
    if is_address(os.fspath(path)):
        raise ValueError(f'{path} is an address; download it, then name the file')
    trust = bool(_trusts()) if trust is None else trust
    with _opened(path) as stream:
        return _read(stream, _shown(path), map_location, trust)


def load_checkpoint(source: str, map_location: Any = 'cpu') -> Any:
    """Reads a checkpoint from wherever mmengine's loader would; data only.

    Args:
        source: A path, or an address: ``https://...``, ``torchvision://...``, ``open-mmlab://...``.
        map_location: Where its tensors go, as for ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If an address can't be read.
        ValueError: As :func:`read_checkpoint`; or a model zoo has no model of the name.
    """
    if not is_address(source):
        return read_checkpoint(source, map_location=map_location)
    try:
        with checkpoints_as_data():
            return CheckpointLoader.load_checkpoint(source, map_location)
    except KeyError as error:
        raise ValueError(f'{source}: there is no model {error}') from error
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{source}: {error}') from error


def is_address(path: str) -> bool:
    """Whether mmengine's loader takes ``path`` as an address and not as a local path.

    Args:
        path: What stands in a config or on a command line.

    Returns:
        True for ``https://...``, ``open-mmlab://...``, ``s3://...`` and the like.
    """
    # The loader takes an address of no known scheme as a path after all.
    return _URL.match(path) is not None and not os.path.exists(path)


def _shown(path: str | os.PathLike) -> str:
    return f'checkpoint {os.path.abspath(os.path.expanduser(path))}'


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """The file, opened once: what its path names may change."""

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, 'O_NONBLOCK', 0))  # a pipe would be waited for

    try:
        stream = open(Path(path).expanduser(), 'rb', opener=at_once)  # noqa: SIM115
    except PermissionError as error:
        raise PermissionError(f'{_shown(path)} may not be read: change its permissions') from error
    except OSError:
        stream = None
    with stream or contextlib.nullcontext():
        if stream is None or not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise FileNotFoundError(
                f'{_shown(path)} does not exist or is no file: check the path (a training writes '
                'its checkpoints into its work_dir)'
            )
        yield stream


def _is_zip(stream: Any) -> bool:
    start = stream.read(4)
    stream.seek(0)
    return start == b'PK\3\4'


def _read(stream: Any, name: str, map_location: Any, trust: bool) -> Any:
    if trust:
        with _damage(name):
            return _torch_load(stream, map_location, weights_only=False)
    is_zip = _is_zip(stream)
    try:
        with _damage(name):
            load = _load_weights_only if _can_allow() else _load_with_our_list
            return finish(load(stream, map_location))
    except DamagedCheckpointError as error:
        # What torch raises has the unpickler's own error behind it, and its advice in front.
        cause = error.__cause__
        if isinstance(cause.__context__, pickle.UnpicklingError):
            cause = cause.__context__
        forbidden = _FORBIDDEN.search(str(cause))
        if forbidden:
            raise ValueError(
                f'{name} holds more than data ({_escaped(forbidden[1])}): reading it would run '
                f'code that the file brings. {_REMEDY}'
            ) from error
        if (is_zip and isinstance(cause, pickle.UnpicklingError)) or 'weights_only' in str(cause):
            raise ValueError(
                f'{name} holds what is not read as data ({_first_line(cause)}). {_REMEDY}'
            ) from error
        raise


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """What torch raises for a file it cannot read."""
    try:
        yield
    except Exception as error:  # a dozen types
        raise DamagedCheckpointError(
            f'{name} is damaged or no checkpoint ({_first_line(error)}): download or write it again'
        ) from error


def _can_allow() -> bool:
    """Whether this torch's restricted reader can be told of names, and is safe: from 2.6 on.

    That of 2.5 takes no stand-ins, and those before 2.6 can be made to run code (CVE-2025-32434).
    """
    return hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')


def _load_weights_only(stream: Any, map_location: Any) -> Any:
    serialization = torch.serialization
    with _lock:
        # mmengine's list for torch holds getattr, with which a file can reach, and call, anything.
        before = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        try:
            with serialization.safe_globals([(kind, name) for name, kind in allowed().items()]):
                return _torch_load(stream, map_location, weights_only=True)
        finally:
            serialization.add_safe_globals(before)


def _load_with_our_list(stream: Any, map_location: Any) -> Any:
    """For torch that has no such reader."""
    if not _is_zip(stream):
        raise pickle.UnpicklingError(
            'in the format of torch before 1.6, for whose weights_only=True torch 2.6 is needed'
        )
    if 'constants.pkl' in torch._C.PyTorchFileReader(stream).get_all_records():
        raise pickle.UnpicklingError('a program of TorchScript')
    stream.seek(0)
    return _torch_load(stream, map_location, pickle_module=_Restricted, weights_only=False)


class _Restricted:
    """What torch asks of a ``pickle_module``."""

    class Unpickler(pickle._Unpickler):
        """Finds what is on the list, and sets attributes of nothing else's objects."""

        dispatch = dict(pickle._Unpickler.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            old = _compat_pickle.IMPORT_MAPPING.get(module, module), name  # as of Python 2
            full = '.'.join(_compat_pickle.NAME_MAPPING.get((module, name), old))
            try:
                return _all_allowed()[full]
            except KeyError:
                raise pickle.UnpicklingError(f'GLOBAL {full} was not an allowed global') from None

        def load_build(self) -> None:
            kind = type(self.stack[-2])  # of a class, it would set the class' own attributes
            if not any(kind is known for known in _all_allowed().values()):
                raise pickle.UnpicklingError(f'a state for a {kind.__name__}')
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build


def _all_allowed() -> dict[str, Any]:
    return torch._weights_only_unpickler._get_allowed_globals() | allowed()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, KeyError) or not text:
        text = f'{type(error).__name__} {text}'
    return _escaped(text.strip().splitlines()[0])


def _escaped(text: str) -> str:
    """What a file says, so that it can do nothing to a terminal."""
    return ascii(text)[1:-1][:_SHORT]
