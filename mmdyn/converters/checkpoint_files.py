"""Reads checkpoint files as data only; :mod:`mmdyn.guard` makes other loaders use this.

A ``.pth`` file is a pickle, and unpickling runs code in it. So files are read by torch's restricted
unpickler, extended by the objects in mmengine's checkpoints.
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
_torch_load = torch.serialization.load  # before a guard replaces it
_lock = threading.Lock()


def check_checkpoint(path: str | os.PathLike, trust: bool = False) -> None:
    """Check early that :func:`read_checkpoint` accepts a path; raises the same errors.

    Addresses pass. Trusted files are not read, only checked to exist and, if zip, to be complete.
    """
    if is_address(os.fspath(path)):
        return
    with _opened(path, trust) as stream:
        if not trust:
            _read_as_data(stream)
        elif _is_zip(stream):
            torch._C.PyTorchFileReader(stream)


def read_checkpoint(path: Any, trust: bool = False, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint file; untrusted ones must be zip files with torch before 2.6.

    Args:
        path: of a local file, or an open binary file.
        trust: read it even if that runs code in the file.
        map_location: of its tensors, as in ``torch.load``.

    Raises:
        FileNotFoundError, PermissionError: if there is no such file, or it is not readable.
        DamagedCheckpointError: if it is damaged or not a checkpoint.
        ValueError: if it contains arbitrary objects and is not trusted; or ``path`` is an address.
    """
    with _opened(path, trust) as stream:
        if trust:
            return _torch_load(stream, map_location, weights_only=False)
        return _read_as_data(stream, map_location)


@contextlib.contextmanager
def _opened(path: Any, trust: bool) -> Iterator[Any]:
    """Open a file once, as its path may change meaning; unifies errors."""
    if hasattr(path, 'read'):
        with _one_message('a checkpoint', path, trust):
            yield path
        return
    if is_address(os.fspath(path)):
        raise ValueError(f'{path} is an address; download it, then name the file')
    file = os.path.abspath(os.path.expanduser(path))
    if os.path.exists(file) and not os.access(file, os.R_OK):
        raise PermissionError(f'checkpoint {file} is not readable: change its permissions')
    at_once = getattr(os, 'O_NONBLOCK', 0)  # opening a pipe would block
    try:
        stream = open(file, 'rb', opener=lambda name, flags: os.open(name, flags | at_once))
    except OSError:
        stream = contextlib.nullcontext()
    with stream as opened:
        if opened is None or not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise FileNotFoundError(
                f'checkpoint {file} does not exist or is no file: check the path (training writes '
                'checkpoints to its work_dir)'
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
    """Convert the various errors of torch to one message."""
    is_zip = _is_zip(stream)
    try:
        yield
    except Exception as error:
        # torch's error starts with advice; the unpickler's is its context.
        cause = error.__context__ if isinstance(error.__context__, UnpicklingError) else error
        text = str(cause).strip()
        why = _escaped(f'{type(cause).__name__}: {(text.splitlines() or [""])[0]}')
        unusual = (is_zip and isinstance(cause, UnpicklingError)) or 'weights_only' in text
        forbidden = _FORBIDDEN.search(text)
        if trust or not (forbidden or unusual):
            raise DamagedCheckpointError(
                f'{name} is damaged or not a checkpoint ({why}): download or write it again'
            ) from error
        what = f'data ({_escaped(forbidden[1])})' if forbidden else f'can be read as data ({why})'
        raise ValueError(
            f'{name} holds more than {what}: reading it may run code in the file. If you trust its '
            'source, pass --trust-checkpoint (trust_checkpoint=True in Python)'
        ) from error


def _escaped(text: str) -> str:
    """Escape text of a file for the terminal."""
    return ascii(text)[1:-1][:200]


def _can_allow() -> bool:
    """Whether torch's reader is safe (CVE-2025-32434) and extensible: 2.6 and later."""
    return hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')


def _read_as_data(stream: Any, map_location: Any = 'cpu') -> Any:
    if not _can_allow():
        place = stream.tell()
        if not _is_zip(stream):
            if stream.read(1) != pickle.PROTO:
                raise UnpicklingError('neither a zip file nor a pickle')
            raise UnpicklingError('to read the old format with weights_only=True, use torch 2.6')
        if 'constants.pkl' in torch._C.PyTorchFileReader(stream).get_all_records():
            raise UnpicklingError('a TorchScript program')
        stream.seek(place)
        return finish(_torch_load(stream, map_location, _Unpickler, weights_only=False))
    names = [(kind, name) for name, kind in allowed().items()]
    with _lock:
        # mmengine adds getattr to torch's list, which would let a file reach and call anything.
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals(names):
                return finish(_torch_load(stream, map_location, weights_only=True))
        finally:
            torch.serialization.add_safe_globals(before)


class _Unpickler(pickle._Unpickler):
    """Restricts classes to the allowed ones, and states to their instances."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        old = _compat_pickle.IMPORT_MAPPING.get(module, module), name  # Python 2 names
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


_Unpickler.Unpickler = _Unpickler  # torch expects a module with this attribute


@functools.cache
def _all_allowed() -> dict[str, Any]:
    return torch._weights_only_unpickler._get_allowed_globals() | allowed()
