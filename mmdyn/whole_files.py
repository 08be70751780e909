"""Files that appear whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# How the name of a file begins that is being written: hidden, and its ending kept, by which
# writers of pictures choose the format.
PART = '.part.'
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Numbers of the errors of a disk that is full or read-only."""
# Bytes of a name that leave room for what stands before it; file systems take 255.
_LONG_NAME = 200


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Has a file written beside its place, then renamed.

    The new content takes the place of the old in one step, once it is on the disk: who looks
    meanwhile, or after a crash, finds the one or the other. A block that fails leaves nothing; a
    process that is killed leaves the file beside, see :func:`remove_parts`. A link's target is
    what is written; what is no regular file, such as ``/dev/stdout``, is written in its place.

    Yields:
        The path to write to, ``.part.PROCESS.NAME`` in the same folder, of a long name the end.

    Raises:
        OSError: as the block or the renaming raised it, but naming ``path``.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    name = path.name if len(os.fsencode(path.name)) <= _LONG_NAME else path.name[-50:]
    beside = path.with_name(f'{PART}{os.getpid()}.{name}')
    try:
        yield beside
        _to_disk(beside)
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    except OSError as error:
        if error.filename in (None, str(beside)):  # a write that fails names no file
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every file system can
        _to_disk(path.parent)


def write_bytes(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Writes a file in one step; see :func:`whole_file`.

    What libraries write is to come by way of memory and this: their own writing hides why it
    failed, or that it did.
    """
    with whole_file(path) as beside:
        beside.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text as UTF-8 in one step; see :func:`whole_file`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes what JSON can hold in one step; see :func:`whole_file`."""
    write_text(path, json.dumps(content, indent=2) + '\n')


def write_figure(path: str | os.PathLike, figure: Any, dpi: int) -> None:
    """Writes a drawing of matplotlib's in one step; the ending of ``path`` says the format."""
    stream = io.BytesIO()
    figure.savefig(stream, format=Path(path).suffix[1:], dpi=dpi)
    write_bytes(path, stream.getbuffer())


def write_checkpoint(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes a checkpoint in one step; see :func:`whole_file`. Makes its folder if need be."""
    import torch  # the tools import this module before they know whether they need torch

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    torch.save(content, stream)
    write_bytes(path, stream.getbuffer())


def remove_parts(folder: str | os.PathLike) -> None:
    """Removes what killed processes left of files; no other process may write there now."""
    for part in Path(folder).glob(f'{PART}*'):
        part.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
