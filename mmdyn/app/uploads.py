"""Untrusted pictures: read within limits, or refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mmdyn.engine.picture_reader import Reader
from mmdyn.errors import BadDataError
from mmdyn.pictures import FORMATS, Picture, resized, size_of


def read_upload(path: Path, reader: Reader, max_side: int) -> tuple[Picture, tuple[int, int]]:
    """Read a picture file.

    Nothing is decoded before its size is known to be within the reader's limit; formats that do
    not tell their size are refused.

    Args:
        path: of the file.
        reader: of the model's config.
        max_side: longer side in pixels that a model gets; larger pictures are shrunk to it.

    Returns:
        The picture as the reader gives it, on white where it is transparent, and shrunk; and the
        (h, w) it has in the file.

    Raises:
        mmdyn.errors.BadDataError: if it can't be used; the message names the file without its
            folder.
    """
    try:
        reader.check(path)
        if reader.is_mmcvs and size_of(path) is None:
            raise BadDataError(f'{path} is no picture that can be read: {", ".join(FORMATS)}')
        picture = _on_white(path, reader) or reader.read(path)
    except BadDataError as error:
        raise BadDataError(str(error).replace(str(path), path.name)) from error
    height, width = picture.image.shape[:2]
    scale = max_side / max(height, width)
    if scale < 1:
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        picture = replace(picture, image=resized(picture.image, small))
    return picture, (height, width)


def _on_white(path: Path, reader: Reader) -> Picture | None:
    """A picture with transparent parts as a browser shows it, to a model of three channels."""
    if reader.channels not in (1, 3):
        return None
    try:
        with Image.open(path, formats=FORMATS) as image:
            if not image.has_transparency_data:
                return None
            image = ImageOps.exif_transpose(image).convert('RGBA')
    except UnidentifiedImageError:
        return None
    except Exception as error:  # decoders raise whatever they stumble over
        raise BadDataError(f'{path} is no picture that can be read: {error}') from error
    white = Image.new('RGBA', image.size, 'white')
    return reader.read_image(Image.alpha_composite(white, image).convert('RGB'))
