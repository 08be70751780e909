"""Makes the hosts write files atomically and report errors."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import cv2
from mmengine.fileio import LocalBackend
from PIL import Image

from mmdyn.whole_files import PART, whole_file, write_bytes


def write_whole() -> None:
    """Make mmengine, Pillow and OpenCV write files through :func:`mmdyn.whole_files.whole_file`.

    Permanent, for the whole process: metrics, visualizers and hooks of the hosts write in place,
    and OpenCV reports errors only by its return value.
    """
    for owner, name, position in (
        (LocalBackend, 'put', 2),
        (LocalBackend, 'put_text', 2),
        (Image.Image, 'save', 1),
    ):
        if not hasattr(getattr(owner, name), '__wrapped__'):
            setattr(owner, name, _whole(getattr(owner, name), position))
    cv2.imwrite = _write_picture


def _whole(write: Any, position: int) -> Any:
    """Wrap a function so that the file at a position of its arguments is written atomically."""

    @functools.wraps(write)
    def writing(*args: Any, **kwargs: Any) -> Any:
        target = args[position] if len(args) > position else None
        if not isinstance(target, str | os.PathLike) or Path(target).name.startswith(PART):
            return write(*args, **kwargs)
        with whole_file(target) as temporary:
            return write(*args[:position], str(temporary), *args[position + 1 :], **kwargs)

    return writing


def _write_picture(filename: str, image: Any, *args: Any, **kwargs: Any) -> bool:
    """OpenCV's ``imwrite``."""
    done, content = cv2.imencode(Path(filename).suffix, image, *args, **kwargs)
    if done:
        write_bytes(filename, content.data)
    return done
