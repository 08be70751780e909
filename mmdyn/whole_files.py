"""Atomic writing of files."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Prefix of temporary files: hidden; the suffix is kept, since writers of pictures choose the format
# by it.
PART = '.part.'
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""errno values of a disk that is full or read-only."""
# Longest name in bytes that leaves room for the prefix; file systems allow 255.
_LONG_NAME = 200


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file next to its target, then rename it.

    The new content replaces the old atomically once it is on disk: after a crash the file is
    either old or new. If the block fails, nothing is left; a killed process leaves the temporary
    file, see :func:`remove_parts`. Links are followed; special files such as ``/dev/stdout`` are
    written directly.

    Yields:
        The path to write to, ``.part.PROCESS.NAME`` in the same folder (long names are cut).

    Raises:
        OSError: of the block or the renaming, with ``path`` as file name.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    name = path.name if len(os.fsencode(path.name)) <= _LONG_NAME else path.name[-50:]
    temporary = path.with_name(f'{PART}{os.getpid()}.{name}')
    try:
        yield temporary
        _to_disk(temporary)
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a failed write has no file name
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not supported by every file system
        _to_disk(path.parent)


def write_bytes(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Write a file atomically; see :func:`whole_file`.

    Encode to memory first and write here: the writers of some libraries hide errors.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`whole_file`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write a JSON file atomically; see :func:`whole_file`."""
    write_text(path, json.dumps(content, indent=2) + '\n')


def write_figure(path: str | os.PathLike, figure: Any, dpi: int) -> None:
    """Write a matplotlib figure atomically; the suffix of ``path`` selects the format."""
    stream = io.BytesIO()
    figure.savefig(stream, format=Path(path).suffix[1:], dpi=dpi)
    write_bytes(path, stream.getbuffer())


def write_checkpoint(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically; creates its folder. See :func:`whole_file`."""
    import torch  # not at the top: tools import this module before they need torch

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    torch.save(content, stream)
    write_bytes(path, stream.getbuffer())


@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[Path]:
    """Fill a folder next to its target, then rename it, so that it is never incomplete.

    Several processes may do so at once: the first one's folder stays. An empty ``target`` is
    replaced; parents are created.

    Raises:
        OSError: if it can't be written.
    """
    target = Path(target).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, since renaming is atomic within a file system only. Not tempfile.mkdtemp, whose
    # permissions would keep others from reading the folder.
    building = target.parent / f'.{target.name}.{secrets.token_hex(6)}.building'
    building.mkdir()
    try:
        yield building
        try:
            os.rename(building, target)
        except OSError:
            if not (target.is_dir() and any(target.iterdir())):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def remove_parts(folder: str | os.PathLike) -> None:
    """Remove temporary files of killed processes; no other process may be writing there."""
    for part in Path(folder).glob(f'{PART}*'):
        part.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
