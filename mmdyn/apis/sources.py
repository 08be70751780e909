"""Sources of pictures: arrays, files, folders, patterns, videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from PIL import Image

from mmdyn.engine.picture_reader import Reader, pictures_in
from mmdyn.pictures import Picture

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')
Source = str | Path | np.ndarray | Image.Image
_SINGLE = (str, bytes, Path, np.ndarray, np.generic, Image.Image)  # even if iterable, one source
_Part = tuple[int, Callable[[], Iterable[Picture]]]  # number of pictures, and their reader


class Pictures:
    """Pictures of one or several sources, in order.

    Files are looked up at once, so that wrong names fail early, and read one by one.

    Args:
        sources: a file, a folder (all pictures in it, at any depth), a pattern such as
            ``'frames/*.jpg'``, a video, an array as from the reader's loader (usually (h, w, 3)
            uint8 BGR), a PIL image (treated as a file with its pixels), or a sequence of these.
        reader: of a config; None = for (h, w, 3) uint8 BGR.

    Raises:
        FileNotFoundError: if a file is missing, or nothing matches a pattern.
        ValueError: if a file is not a picture or has too many pixels, an array has another shape or
            dtype, or there are no pictures.
        TypeError: if a source is of another type.
    """

    def __init__(self, sources: Source | Sequence[Source], reader: Reader | None = None) -> None:
        reader = reader or Reader(channels=3)
        if not isinstance(sources, Iterable) or isinstance(sources, _SINGLE):
            sources = [sources]
        self._parts = [part for source in sources for part in _parts_of(source, reader)]
        if not self._parts:
            raise ValueError('no pictures to predict on: give a file, a folder or arrays')

    def __len__(self) -> int:
        """Number of pictures, including frames of videos."""
        return sum(count for count, _ in self._parts)

    def __iter__(self) -> Iterator[Picture]:
        """Read the pictures."""
        taken: dict[str, int] = {}
        for _, read in self._parts:
            for picture in read():
                name = picture.name
                count = taken[name] = taken.get(name, 0) + 1
                yield picture if count == 1 else replace(picture, name=f'{name}_{count}')


def _parts_of(source: Any, reader: Reader) -> list[_Part]:
    if isinstance(source, Image.Image):
        return [(1, lambda: [reader.read_image(source)])]
    if isinstance(source, np.ndarray):
        picture = reader.take(source)
        return [(1, lambda: [picture])]
    if not isinstance(source, (str, Path)):
        raise TypeError(
            'a source must be a file, a folder, a pattern, an array or a PIL image, got '
            f'{type(source).__name__}'
        )
    # An empty name would mean the current folder.
    if source and os.path.isdir(source):
        return [_read_later(file, reader) for file in pictures_in(source, reader)]
    if source and os.path.isfile(source):
        return [_part_of_file(Path(source), reader)]
    matches = sorted(filter(os.path.isfile, glob.glob(str(source), recursive=True)))
    if not matches:
        shown = str(source)[:300] or "''"
        raise FileNotFoundError(f'{shown} is no file or folder, and no file matches it')
    return [_part_of_file(Path(match), reader) for match in matches]


def _part_of_file(path: Path, reader: Reader) -> _Part:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return _part_of_video(path, reader)
    # A custom loader may read other formats.
    if reader.is_mmcvs and suffix not in reader.suffixes:
        raise ValueError(
            f'{path} is neither a picture ({", ".join(reader.suffixes)}) nor a video '
            f'({", ".join(VIDEO_SUFFIXES)})'
        )
    reader.check(path)
    return _read_later(path, reader)


def _read_later(path: Path, reader: Reader) -> _Part:
    return 1, lambda: [reader.read(path)]


def _part_of_video(path: Path, reader: Reader) -> _Part:
    count = len(mmcv.VideoReader(str(path)))
    if not count:
        raise ValueError(f'{path} is not a readable video')

    def read() -> Iterator[Picture]:
        for number, frame in enumerate(mmcv.VideoReader(str(path))):
            yield reader.take(frame, f'{path.stem}_{number:06d}', path)

    return count, read
