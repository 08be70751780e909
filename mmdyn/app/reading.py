"""Pictures that strangers send: read within limits, or refused with a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmdyn.apis.sources import Picture

# Those that browsers and cameras write. Pillow knows more, some of which run other programs.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')


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


def read_upload(path: str | Path, limits: Limits) -> tuple[Picture, tuple[int, int]]:
    """Read a picture file.

    Nothing of it is decoded before its size is known to be within the limit.

    Args:
        path: of the file.
        limits: what is accepted.

    Returns:
        The picture, upright, on white where it is transparent, and shrunk to the limit; and the
        (h, w) it had in the file.

    Raises:
        ValueError: if it is no picture, a broken one, has too many pixels or 32 bits a pixel,
            or is not there any more.
    """
    with _explained(limits):
        image = Image.open(path, formats=FORMATS)
    with image:
        width, height = image.size
        if width * height > limits.pixels * 1e6:
            raise ValueError(_too_many(f'{width}x{height}', limits))
        with _explained(limits):
            upright = ImageOps.exif_transpose(image)
        if upright.mode in ('I', 'F'):
            raise ValueError(
                'This picture has 32 bits a pixel, of which nobody can tell what is white: save it '
                'with 8 or 16.'
            )
        with _explained(limits):
            upright = _to_rgb(upright)
    width, height = upright.size
    upright.thumbnail((limits.side, limits.side))
    return Picture('upload', np.asarray(upright)[..., ::-1].copy()), (height, width)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel, as a browser would show it."""
    if image.mode.startswith('I;16'):  # Pillow itself would clip what is above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')


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
