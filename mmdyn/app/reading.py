"""Untrusted pictures: read within limits, or refused with a reason."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mmdyn.engine.reading import Reader
from mmdyn.errors import BadDataError
from mmdyn.pictures import FORMATS, Picture, resized, size_of


@dataclass(frozen=True)
class Limits:
    """What is accepted.

    Attributes:
        upload: size of a file in MiB.
        pixels: of a picture in a file, in millions.
        side: longer side in pixels that a model gets; larger pictures are shrunk to it.
    """

    upload: float
    pixels: float
    side: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f'the limit of {name} must be above 0 and finite, got {value}')

    @property
    def upload_bytes(self) -> int:
        """Size of a file in bytes."""
        return int(self.upload * 2**20)


def read_upload(
    path: str | Path, limits: Limits, reader: Reader | None = None
) -> tuple[Picture, tuple[int, int]]:
    """Read a picture file.

    Nothing of it is decoded before its size is known to be within the limit.

    Args:
        path: of the file.
        limits: what is accepted.
        reader: of the model's config; None = for (h, w, 3) uint8, blue first.

    Returns:
        The picture as the reader gives it, on white where it is transparent, and shrunk to the
        limit; and the (h, w) it has in the file.

    Raises:
        ValueError: if it is no picture, a broken one, has too many pixels or 32 bits a pixel
            where the model takes 8, or is not there any more.
    """
    reader = reader or Reader(channels=3)
    with _explained(limits):
        hw = size_of(path)
        if hw is None and reader.is_mmcvs:
            raise UnidentifiedImageError
    if hw is not None and hw[0] * hw[1] > limits.pixels * 1e6:
        raise ValueError(_too_many(f'{hw[1]}x{hw[0]}', limits))
    picture = _on_white(path, reader, limits)
    if picture is None:
        try:
            picture = reader.read(path)
        except BadDataError as error:  # names the server's file
            logging.getLogger(__name__).warning('%s', error)
            raise ValueError(
                'This picture is broken, or not of the kind that the model takes: try another file.'
            ) from error
    height, width = picture.image.shape[:2]
    scale = limits.side / max(height, width)
    if scale < 1:
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        picture = replace(picture, image=resized(picture.image, small))
    return replace(picture, name='upload'), (height, width)


def _on_white(path: str | Path, reader: Reader, limits: Limits) -> Picture | None:
    """A picture with transparent parts as a browser shows it, to a model of three channels."""
    if reader.channels not in (1, 3):
        return None
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        return None
    with image:
        if image.mode in ('I', 'F') and not reader.keeps_depth:
            raise ValueError(
                'This picture has 32 bits a pixel, of which nobody can tell what is white: save it '
                'with 8 or 16.'
            )
        if not image.has_transparency_data:
            return None
        with _explained(limits):
            image = ImageOps.exif_transpose(image).convert('RGBA')
            white = Image.new('RGBA', image.size, 'white')
            return reader.read_image(Image.alpha_composite(white, image).convert('RGB'))


@contextmanager
def _explained(limits: Limits) -> Iterator[None]:
    """Turn what Pillow raises into a sentence for whoever sent the file."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(
            f'This file is no picture that can be read: give one of {", ".join(FORMATS)}.'
        ) from None
    except Image.DecompressionBombError:  # Pillow's own limit, if ours is higher
        raise ValueError(_too_many('too many', limits)) from None
    except FileNotFoundError:  # uploads are deleted after a while
        raise ValueError('This picture is no longer here: drop it again.') from None
    except Exception as error:  # a decoder raises whatever it stumbles over
        raise ValueError(f'This picture is broken: {error}. Try another file.') from error


def _too_many(found: str, limits: Limits) -> str:
    return (
        f'This picture has {found} pixels, the limit is {limits.pixels:g} million: give a smaller '
        'one, or start the page with a higher --max-pixels.'
    )
