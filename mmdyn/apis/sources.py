"""Where pictures come from: arrays, files, folders, patterns, videos."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from PIL import Image

from mmdyn.analysis.images import SUFFIXES, pictures_in
from mmdyn.errors import BadDataError

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')
Source = str | Path | np.ndarray | Image.Image


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to predict on.

    Attributes:
        name: unique among those read together; what files made from it are called.
        image: (h, w, 3) uint8, blue first, as the hosts' pipelines read it.
        path: its file, or the video it is from; None = it was given as an array.
    """

    name: str
    image: np.ndarray
    path: Path | None = None


class Pictures:
    """Pictures of one or several sources, in order.

    Files are looked for at once, so that a wrong name is known before any work; they
    are read one by one.

    Args:
        sources: a file, a folder (all pictures in it, at any depth), a pattern such as
            ``'frames/*.jpg'``, a video, an (h, w, 3) uint8 array with blue first, a PIL
            image, or a sequence of these.

    Raises:
        FileNotFoundError: if a file is not there, or nothing matches a pattern.
        ValueError: if a file is no picture, an array has another shape or dtype, or there
            is nothing at all.
        TypeError: if a source is none of these.
    """

    def __init__(self, sources: Source | Sequence[Source]) -> None:
        if isinstance(sources, (str, Path, np.ndarray, Image.Image)):
            sources = [sources]
        self._readers = [reader for source in sources for reader in _readers_of(source)]
        if not self._readers:
            raise ValueError('there are no pictures to predict on: give a file, a folder or arrays')

    def __len__(self) -> int:
        """How many pictures; frames of a video count."""
        return sum(len(reader) for reader in self._readers)

    def __iter__(self) -> Iterator[Picture]:
        """Read them."""
        taken: dict[str, int] = {}
        for reader in self._readers:
            for name, image in reader:
                count = taken[name] = taken.get(name, 0) + 1
                unique = name if count == 1 else f'{name}_{count}'
                yield Picture(unique, image, reader.path)


class _File:
    """A picture file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        try:
            image = mmcv.imread(str(self.path))
        except (OSError, cv2.error) as error:
            raise BadDataError(f"{self.path} can't be read: {error}") from error
        if image is None:
            raise BadDataError(f'{self.path} is no picture that can be read, or a broken one')
        yield self.path.stem, image


class _Array:
    """A picture in memory."""

    path = None

    def __init__(self, image: np.ndarray) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f'an array is (h, w, 3) uint8 with blue first, got {image.shape} {image.dtype}'
            )
        self.image = image

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        yield 'array', self.image


class _Video:
    """A video file, frame by frame."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = len(mmcv.VideoReader(str(path)))
        if not self._count:
            raise ValueError(f'{path} is no video that can be read')

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for number, frame in enumerate(mmcv.VideoReader(str(self.path))):
            yield f'{self.path.stem}_{number:06d}', frame


def _readers_of(source: Any) -> list[Any]:
    if isinstance(source, Image.Image):
        return [_Array(np.asarray(source.convert('RGB'))[..., ::-1])]
    if isinstance(source, np.ndarray):
        return [_Array(source)]
    if not isinstance(source, (str, Path)):
        raise TypeError(
            'a source is a file, a folder, a pattern, an array or a PIL image, got '
            f'{type(source).__name__}'
        )
    path = Path(source)
    if path.is_dir():
        return [_File(file) for file in pictures_in(path)]
    if path.is_file():
        return [_file_reader(path)]
    matches = [Path(match) for match in sorted(glob.glob(str(source), recursive=True))]
    readers = [_file_reader(match) for match in matches if match.is_file()]
    if not readers:
        raise FileNotFoundError(f'{source} is no file or folder, and matches none as a pattern')
    return readers


def _file_reader(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return _Video(path)
    if suffix not in SUFFIXES:
        raise ValueError(
            f'{path} is neither a picture ({", ".join(SUFFIXES)}) nor a video '
            f'({", ".join(VIDEO_SUFFIXES)})'
        )
    return _File(path)
