"""Pictures: what a file says before it is decoded, and how an array is shown."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
# What Pillow may take a file for, whatever its name. It knows more, and has Ghostscript run some.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
_POSTSCRIPT = (b'%!PS', b'\xc5\xd0\xd3\xc6')
_ROWS = 256  # that are brought to 8 bits at a time


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to predict on.

    Attributes:
        name: unique among those read together; what files made from it are called.
        image: (h, w, C) or (h, w), as the config's loader gives it: in the usual case
            (h, w, 3) uint8, blue first.
        path: its file, or the video it is from; None = it was given as an array.
        loaded: what else the config's loader returned.
    """

    name: str
    image: np.ndarray
    path: Path | None = None
    loaded: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def rgb(self) -> np.ndarray:
        """(h, w, 3) uint8, red first; see :func:`mmdyn.pictures.as_rgb`."""
        return as_rgb(self.image)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Convert an array of any dtype to (h, w, 3) uint8, red first; a view of an 8-bit array.

    Args:
        image: (h, w, C), blue first, or (h, w). The first three channels are shown, or one as
            grey. Other values than 0 to 255 are scaled so that the 1st percentile is black and
            the 99th white; what is not finite is black.
    """
    if image.ndim == 2:
        image = image[..., None]
    shown = image[..., 2::-1] if image.shape[2] >= 3 else image[..., :1]
    if shown.dtype != np.uint8:
        shown = _in_8_bits(shown)
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def _in_8_bits(image: np.ndarray) -> np.ndarray:
    step = 1 + max(image.shape) // 1000
    sample = image[::step, ::step].astype(np.float32)
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, (1, 99)) if sample.size else (0, 255)
    # 8 bits that were read as floats.
    if image.dtype.kind == 'f' and ((sample >= 0) & (sample <= 255) & (sample % 1 == 0)).all():
        low, high = 0, 255
    scaled = np.empty(image.shape, np.uint8)
    for top in range(0, len(image), _ROWS):
        rows = (image[top : top + _ROWS].astype(np.float32) - low) * (255 / max(high - low, 1e-12))
        scaled[top : top + _ROWS] = np.nan_to_num(rows, posinf=0).clip(0, 255)
    return scaled


def resized(image: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize (h, w, C) or (h, w) to (h, w) = ``hw``, without regard to its aspect.

    What is neither uint8 nor uint16 becomes float32.
    """
    if image.dtype not in (np.uint8, np.uint16):
        image = image.astype(np.float32)
    few = image.ndim == 2 or image.shape[2] <= 4  # of which OpenCV can take means
    way = cv2.INTER_AREA if few and hw[0] <= image.shape[0] else cv2.INTER_LINEAR
    made = cv2.resize(image, hw[::-1], interpolation=way)
    return made.reshape(*hw, *image.shape[2:])


def size_of(path: str | Path) -> tuple[int, int] | None:
    """The (h, w) that a picture file says it has; nothing of it is decoded.

    None if it is of none of ``FORMATS``.

    Raises:
        OSError: if it can't be read, is empty, or is PostScript.
        ValueError: if it is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, about what the decoder will find
        try:
            with Image.open(path, formats=FORMATS) as image:
                return image.size[::-1]
        except UnidentifiedImageError:
            refuse_postscript(path)
            if not os.path.getsize(path):
                raise UnidentifiedImageError('it is empty') from None
            return _size_of_other(path)


def refuse_postscript(path: str | Path) -> None:
    """Keep PostScript from Pillow, which would have Ghostscript run it, whatever its name.

    Raises:
        OSError: if the file is PostScript, or can't be read.
    """
    with open(path, 'rb') as file:
        if file.read(4).startswith(_POSTSCRIPT):
            raise UnidentifiedImageError('it is PostScript, which is not read')


def _size_of_other(path: str | Path) -> tuple[int, int] | None:
    """Of what Pillow does not know: TIFF files of several channels of 16 bits, for example."""
    with open(path, 'rb') as file:
        header = file.read(8)
        if not header.startswith(tuple(TiffImagePlugin.PREFIXES)):
            return None
        header += file.read(8) if header[2] == 43 else b''  # BigTIFF
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            return tags[TiffImagePlugin.IMAGELENGTH], tags[TiffImagePlugin.IMAGEWIDTH]
        except Exception as error:  # it raises whatever it stumbles over
            raise ValueError(f'it is a damaged TIFF file: {error!r}') from error
