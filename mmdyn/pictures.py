"""Pictures: their size before decoding, and conversion to RGB."""

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
# Formats that Pillow may try, whatever the file name. Others may start Ghostscript.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
_POSTSCRIPT = (b'%!PS', b'\xc5\xd0\xd3\xc6')
_ROWS = 256  # converted to 8 bits at a time


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to predict on.

    Attributes:
        name: unique among the pictures read together; names its output files.
        image: (h, w, C) or (h, w), from the config's loader: usually (h, w, 3) uint8 BGR.
        path: its file or video; None = given as an array.
        loaded: other results of the config's loader.
    """

    name: str
    image: np.ndarray
    path: Path | None = None
    loaded: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def rgb(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB; see :func:`mmdyn.pictures.as_rgb`."""
        return as_rgb(self.image)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Convert an array of any dtype to (h, w, 3) uint8 RGB; a view of an 8-bit array.

    Args:
        image: (h, w, C) BGR, or (h, w). The first three channels are shown, or one as grey. Values
            outside 0 to 255 are scaled so that the 1st percentile is black and the 99th white;
            non-finite values are black.
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
    # 8-bit values read as floats.
    if image.dtype.kind == 'f' and ((sample >= 0) & (sample <= 255) & (sample % 1 == 0)).all():
        low, high = 0, 255
    scaled = np.empty(image.shape, np.uint8)
    for top in range(0, len(image), _ROWS):
        rows = (image[top : top + _ROWS].astype(np.float32) - low) * (255 / max(high - low, 1e-12))
        scaled[top : top + _ROWS] = np.nan_to_num(rows, posinf=0).clip(0, 255)
    return scaled


def resized(image: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize (h, w, C) or (h, w) to (h, w) = ``hw``, ignoring the aspect ratio.

    Dtypes other than uint8 and uint16 become float32.
    """
    if image.dtype not in (np.uint8, np.uint16):
        image = image.astype(np.float32)
    few = image.ndim == 2 or image.shape[2] <= 4  # OpenCV's limit for INTER_AREA
    way = cv2.INTER_AREA if few and hw[0] <= image.shape[0] else cv2.INTER_LINEAR
    made = cv2.resize(image, hw[::-1], interpolation=way)
    return made.reshape(*hw, *image.shape[2:])


def size_of(path: str | Path) -> tuple[int, int] | None:
    """(h, w) of a picture file, from its header; None for none of ``FORMATS``.

    Raises:
        OSError: if it can't be read, is empty, or is PostScript.
        ValueError: if it is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, repeated by the decoder
        try:
            with Image.open(path, formats=FORMATS) as image:
                return image.size[::-1]
        except UnidentifiedImageError:
            refuse_postscript(path)
            if not os.path.getsize(path):
                raise UnidentifiedImageError('it is empty') from None
            return _size_of_other(path)


def refuse_postscript(path: str | Path) -> None:
    """Refuse PostScript files, for which Pillow would run Ghostscript whatever their name.

    Raises:
        OSError: if the file is PostScript, or can't be read.
    """
    with open(path, 'rb') as file:
        if file.read(4).startswith(_POSTSCRIPT):
            raise UnidentifiedImageError('PostScript is not supported')


def _size_of_other(path: str | Path) -> tuple[int, int] | None:
    """Size of files that Pillow can't open, such as TIFF with several 16-bit channels."""
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
        except Exception as error:  # Pillow raises various errors
            raise ValueError(f'it is a damaged TIFF file: {error!r}') from error
