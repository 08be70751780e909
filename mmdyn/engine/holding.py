"""Allows one training at a time in a work directory."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

from mmengine.config import Config

from mmdyn.engine.distributed import is_first
from mmdyn.engine.resuming import checkpoint_folder

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = '.training.lock'
_HELD: dict[Path, int] = {}


def hold(cfg: Config) -> None:
    """Lock a training's folders for this process (in a distributed run, the first).

    ``cfg.launcher`` and ``cfg.work_dir`` must be set. The lock is an OS lock on a file :data:`LOCK`
    and ends with the process; the file remains. On file systems without locks nothing happens.

    Raises:
        ValueError: if another process trains there.
        OSError: if a folder is not writable.
    """
    if fcntl is None or not is_first(cfg.launcher):
        return
    for folder in {Path(cfg.work_dir), checkpoint_folder(cfg)}:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _hold(folder.resolve() / LOCK)


def _hold(path: Path) -> None:
    if path in _HELD:
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Not flock, which data loader workers would keep after a kill.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(file, 200).decode(errors='replace') or 'another process'
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(
                f'{holder} is training in {path.parent}: use another folder (--work-dir), or wait '
                'until it ends'
            ) from error
        return
    _HELD[path] = file
    with contextlib.suppress(OSError):  # the content is informative only
        os.ftruncate(file, 0)
        os.write(file, f'process {os.getpid()} on {socket.gethostname()}'.encode())
