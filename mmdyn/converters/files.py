"""Writing a checkpoint in one step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def check_target(target: Path, source: Path, force: bool) -> None:
    """Check, before any work is done, that a file may be written.

    Args:
        target: the file to write.
        source: the file that is read.
        force: whether ``target`` may exist.

    Raises:
        ValueError: if it is the source, or exists and ``force`` is False.
        IsADirectoryError: if it is a folder.
    """
    if target.is_dir():
        raise IsADirectoryError(f'{target} is a folder; name a file in it')
    if not target.exists():
        return
    if source.exists() and target.samefile(source):
        raise ValueError(f'{target} is the file to convert; name another one for the result')
    if not force:
        raise ValueError(f'{target} exists; pass --force to overwrite it, or name another file')


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; it appears whole or not at all. Its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        torch.save(content, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
