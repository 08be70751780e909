"""Where pictures come from: arrays, files, folders, patterns, videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from PIL import Image

from mmdyn.engine.reading import Reader, pictures_in
from mmdyn.pictures import Picture

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')
Source = str | Path | np.ndarray | Image.Image
_SINGLE = (str, bytes, Path, np.ndarray, np.generic, Image.Image)  # of what can be gone through


class Pictures:
    """Pictures of one or several sources, in order.

    Files are looked for at once, so that a wrong name is known before any work; they
    are read one by one.

    Args:
        sources: a file, a folder (all pictures in it, at any depth), a pattern such as
            ``'frames/*.jpg'``, a video, an array as the reader's loader would give it (in the
            usual case (h, w, 3) uint8 with blue first), a PIL image, which is read as its
            file would be, or a sequence of these.
        reader: of a config; None = for (h, w, 3) uint8, blue first.

    Attributes:
        sources, reader: as they were given.

    Raises:
        FileNotFoundError: if a file is not there, or nothing matches a pattern.
        ValueError: if a file is no picture or has too many pixels, an array has another shape or
            dtype, or there is nothing at all.
        TypeError: if a source is none of these.
    """

    def __init__(self, sources: Source | Sequence[Source], reader: Reader | None = None) -> None:
        self.sources, self.reader = sources, reader or Reader(channels=3)
        if not isinstance(sources, Iterable) or isinstance(sources, _SINGLE):
            sources = [sources]
        self._readers = [one for source in sources for one in _readers_of(source, self.reader)]
        if not self._readers:
            raise ValueError('there are no pictures to predict on: give a file, a folder or arrays')

    def __len__(self) -> int:
        """How many pictures; frames of a video count."""
        return sum(len(reader) for reader in self._readers)

    def __iter__(self) -> Iterator[Picture]:
        """Read them."""
        taken: dict[str, int] = {}
        for reader in self._readers:
            for picture in reader:
                name = picture.name
                count = taken[name] = taken.get(name, 0) + 1
                yield picture if count == 1 else replace(picture, name=f'{name}_{count}')


class _One:
    """A file or a PIL image, read when it is asked for."""

    def __init__(self, read: Any, source: Path | Image.Image) -> None:
        self._read, self._source = read, source

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Picture]:
        yield self._read(self._source)


class _Video:
    """A video file, frame by frame."""

    def __init__(self, path: Path, reader: Reader) -> None:
        self._path, self._reader = path, reader
        self._count = len(mmcv.VideoReader(str(path)))
        if not self._count:
            raise ValueError(f'{path} is no video that can be read')

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Picture]:
        for number, frame in enumerate(mmcv.VideoReader(str(self._path))):
            yield self._reader.take(frame, f'{self._path.stem}_{number:06d}', self._path)


def _readers_of(source: Any, reader: Reader) -> list[Any]:
    if isinstance(source, Image.Image):
        return [_One(reader.read_image, source)]
    if isinstance(source, np.ndarray):
        return [[reader.take(source)]]
    if not isinstance(source, (str, Path)):
        raise TypeError(
            'a source is a file, a folder, a pattern, an array or a PIL image, got '
            f'{type(source).__name__}'
        )
    # An empty name would be this folder, and not everything that is no name can be looked for.
    if source and os.path.isdir(source):
        return [_One(reader.read, file) for file in pictures_in(source, reader)]
    if source and os.path.isfile(source):
        return [_file_reader(Path(source), reader)]
    matches = sorted(glob.glob(str(source), recursive=True))
    readers = [_file_reader(Path(match), reader) for match in matches if os.path.isfile(match)]
    if not readers:
        shown = str(source)[:300] or "''"
        raise FileNotFoundError(f'{shown} is no file or folder, and matches none as a pattern')
    return readers


def _file_reader(path: Path, reader: Reader) -> Any:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return _Video(path, reader)
    # What a loader of one's own reads is not known.
    if reader.is_mmcvs and suffix not in reader.suffixes:
        raise ValueError(
            f'{path} is neither a picture ({", ".join(reader.suffixes)}) nor a video '
            f'({", ".join(VIDEO_SUFFIXES)})'
        )
    reader.check(path)
    return _One(reader.read, path)
