"""Writing a checkpoint in one step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from mmdyn.checks import check_file
from mmdyn.whole_files import write_bytes


def check_target(target: Path, source: Path, force: bool) -> None:
    """Check, before any work is done, that a file may be written.

    Args:
        target: the file to write.
        source: the file that is read.
        force: whether ``target`` may exist.

    Raises:
        ValueError: if it is the source, or exists and ``force`` is False.
        OSError: if it can't be written; see :func:`mmdyn.checks.check_file`.
    """
    check_file('DST', target)
    if not target.exists():
        return
    if source.exists() and target.samefile(source):
        raise ValueError(f'{target} is the file to convert; name another one for the result')
    if not force:
        raise ValueError(f'{target} exists; pass --force to overwrite it, or name another file')


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; it appears whole or not at all. Its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # By way of memory: torch's own writing to files hides why a write failed.
    stream = io.BytesIO()
    torch.save(content, stream)
    write_bytes(path, stream.getbuffer())
