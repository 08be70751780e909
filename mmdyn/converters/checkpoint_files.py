"""Reading checkpoint files as data; :mod:`mmdyn.guard` has others read like this too.

A ``.pth`` file is a pickle: reading it plainly runs whatever code its author put in. So it is read
by torch's restricted unpickler, which is told what mmengine's checkpoints hold beyond tensors.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import functools
import os
import pickle
import re
import stat
import threading
from collections.abc import Iterator
from pickle import UnpicklingError
from typing import Any

import torch

from mmdyn.checks import is_address
from mmdyn.converters.allowed import allowed, finish
from mmdyn.errors import DamagedCheckpointError

_FORBIDDEN = re.compile(r'GLOBAL (.*?) (?:was not an allowed|whose module)', re.DOTALL)
_torch_load = torch.serialization.load  # before a guard stands in its place
_lock = threading.Lock()


def check_checkpoint(path: str | os.PathLike, trust: bool = False) -> None:
    """Checks early that :func:`read_checkpoint` will take a path, and raises what it would.

    An address passes. A trusted file is not read: it must be there, and no part of a zip file.
    """
    if is_address(os.fspath(path)):
        return
    with _opened(path, trust) as stream:
        if not trust:
            _read_as_data(stream)
        elif _is_zip(stream):
            torch._C.PyTorchFileReader(stream)


def read_checkpoint(path: Any, trust: bool = False, map_location: Any = 'cpu') -> Any:
    """Reads a checkpoint file; with torch before 2.6 only a zip file unless it is trusted.

    Args:
        path: A local file's, or an open binary file.
        trust: Read it even if that runs code which the file brings.
        map_location: Where its tensors go, as for ``torch.load``.

    Raises:
        FileNotFoundError, PermissionError: If there is no such file, or it may not be read.
        DamagedCheckpointError: If it is damaged or no checkpoint.
        ValueError: If it holds more than data and isn't trusted; or ``path`` is an address.
    """
    with _opened(path, trust) as stream:
        if trust:
            return _torch_load(stream, map_location, weights_only=False)
        return _read_as_data(stream, map_location)


@contextlib.contextmanager
def _opened(path: Any, trust: bool) -> Iterator[Any]:
    """A file, opened once, for what its path names may change; its errors become one."""
    if hasattr(path, 'read'):
        with _one_message('a checkpoint', path, trust):
            yield path
        return
    if is_address(os.fspath(path)):
        raise ValueError(f'{path} is an address; download it, then name the file')
    file = os.path.abspath(os.path.expanduser(path))
    if os.path.exists(file) and not os.access(file, os.R_OK):
        raise PermissionError(f'checkpoint {file} may not be read: change its permissions')
    at_once = getattr(os, 'O_NONBLOCK', 0)  # a pipe would be waited for
    try:
        stream = open(file, 'rb', opener=lambda name, flags: os.open(name, flags | at_once))
    except OSError:
        stream = contextlib.nullcontext()
    with stream as opened:
        if opened is None or not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise FileNotFoundError(
                f'checkpoint {file} does not exist or is no file: check the path (a training '
                'writes its checkpoints into its work_dir)'
            )
        with _one_message(f'checkpoint {file}', opened, trust):
            yield opened


def _is_zip(stream: Any) -> bool:
    place = stream.tell()
    start = stream.read(4)
    stream.seek(place)
    return start == b'PK\3\4'


@contextlib.contextmanager
def _one_message(name: str, stream: Any, trust: bool) -> Iterator[None]:
    """Makes one error of what torch raises, a dozen types."""
    is_zip = _is_zip(stream)
    try:
        yield
    except Exception as error:
        # Behind torch's own error, which begins with advice, is the unpickler's.
        cause = error.__context__ if isinstance(error.__context__, UnpicklingError) else error
        told = str(cause).strip()
        why = _escaped(f'{type(cause).__name__}: {(told.splitlines() or [""])[0]}')
        unusual = (is_zip and isinstance(cause, UnpicklingError)) or 'weights_only' in told
        forbidden = _FORBIDDEN.search(told)
        if trust or not (forbidden or unusual):
            raise DamagedCheckpointError(
                f'{name} is damaged or no checkpoint ({why}): download or write it again'
            ) from error
        what = f'data ({_escaped(forbidden[1])})' if forbidden else f'can be read as data ({why})'
        raise ValueError(
            f'{name} holds more than {what}: reading it may run code that it brings. If you trust '
            'where it comes from, pass --trust-checkpoint (trust_checkpoint=True in Python)'
        ) from error


def _escaped(text: str) -> str:
    """What a file says, so that it can do nothing to a terminal."""
    return ascii(text)[1:-1][:200]


def _can_allow() -> bool:
    """Whether torch's reader can be told of names, and is safe (CVE-2025-32434): from 2.6 on."""
    return hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')


def _read_as_data(stream: Any, map_location: Any = 'cpu') -> Any:
    if not _can_allow():
        place = stream.tell()
        if not _is_zip(stream):
            if stream.read(1) != pickle.PROTO:
                raise UnpicklingError('neither a zip file nor a pickle')
            raise UnpicklingError('for weights_only=True of an old format, take torch 2.6')
        if 'constants.pkl' in torch._C.PyTorchFileReader(stream).get_all_records():
            raise UnpicklingError('a program of TorchScript')
        stream.seek(place)
        return finish(_torch_load(stream, map_location, _Unpickler, weights_only=False))
    names = [(kind, name) for name, kind in allowed().items()]
    with _lock:
        # mmengine's list for torch holds getattr, with which a file can reach, and call, anything.
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals(names):
                return finish(_torch_load(stream, map_location, weights_only=True))
        finally:
            torch.serialization.add_safe_globals(before)


class _Unpickler(pickle._Unpickler):
    """Finds what is on the list, and sets attributes of nothing but what that makes."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        old = _compat_pickle.IMPORT_MAPPING.get(module, module), name  # names of Python 2
        full = '.'.join(_compat_pickle.NAME_MAPPING.get((module, name), old))
        if full not in _all_allowed():
            raise UnpicklingError(f'GLOBAL {full} was not an allowed global')
        return _all_allowed()[full]

    def load_build(self) -> None:
        kind = type(self.stack[-2])
        if not any(kind is known for known in _all_allowed().values()):
            raise UnpicklingError(f'a state for a {kind.__name__}')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


_Unpickler.Unpickler = _Unpickler  # as a module that torch unpickles by


@functools.cache
def _all_allowed() -> dict[str, Any]:
    return torch._weights_only_unpickler._get_allowed_globals() | allowed()
