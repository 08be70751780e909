"""Validation of values; imports no torch, so it is quick."""

from __future__ import annotations

import math
import numbers
import os
import re
from pathlib import Path
from typing import Any

MAX_SEED = 2**32 - 1
"""Largest random seed, numpy's limit."""


def check_integer(name: str, value: Any, lowest: int = 1, highest: float = math.inf) -> int:
    """Validate an integer, by default a positive one, and return it.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below ``lowest`` or above ``highest``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f'{name} must be an integer, got {value!r}')
    if not lowest <= value <= highest:
        bounds = f'{lowest} or more' if highest == math.inf else f'in {lowest}..{highest}'
        raise ValueError(f'{name} must be {bounds}, got {value}')
    return int(value)


def check_folder(option: str, folder: str | os.PathLike) -> None:
    """Check that files can be written into a folder, without creating it.

    Args:
        option: name of the option, for the message.
        folder: may not exist yet.

    Raises:
        ValueError: if it is the empty string.
        NotADirectoryError: if it, or a parent, is a file.
        PermissionError: if it is not writable.
    """
    if not os.fspath(folder):
        raise ValueError(f"{option} '' is empty: give a folder, . for the current one")
    there = Path(folder).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f'{option} {folder}: {there} is not a folder: name another one')
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f'{option} {folder}: {there} is not writable: name another folder')


def check_file(option: str, file: str | os.PathLike) -> None:
    """Check that a file can be written; it may exist.

    Raises:
        IsADirectoryError: if it is a folder.
        NotADirectoryError, PermissionError: see :func:`check_folder`.
    """
    if Path(file).is_dir():
        raise IsADirectoryError(f'{option} {file} is a folder: name a file in it')
    check_folder(option, Path(file).absolute().parent)


def prepare_file(option: str, file: str | os.PathLike | None) -> None:
    """Check a file to be written and create its folder; None = no file."""
    if file is not None:
        check_file(option, file)
        Path(file).parent.mkdir(parents=True, exist_ok=True)


def is_address(path: str) -> bool:
    """Whether mmengine's checkpoint loader treats ``path`` as an address, not a local path.

    True for ``https://...``, ``open-mmlab://...``, ``s3://...`` and the like.
    """
    # With an unknown scheme the loader falls back to a path.
    found = re.match(r'[A-Za-z][A-Za-z0-9+.-]+:(\w+:)?//', path)
    return found is not None and not os.path.exists(path)
