"""Writes inferences to files: drawings, videos, label maps and a JSON file."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from mmdyn.apis.sources import VIDEO_SUFFIXES
from mmdyn.engine.predictions import Inference
from mmdyn.visualization.inference import dim, draw, kept_counts, predicted
from mmdyn.whole_files import whole_file, write_bytes, write_figure, write_text


class Writer:
    """Writes inferences into a folder, and ``results.json`` when closed.

    Args:
        folder: an existing one.
        draw: whether to write drawings.
        labels: whether to write label maps (segmentors, see :func:`label_image`) and segments
            (panoptic models, see :func:`panoptic_image`).
        min_score: lowest score of an instance.
    """

    def __init__(
        self, folder: Path, *, draw: bool = True, labels: bool = False, min_score: float = 0.3
    ) -> None:
        self.folder = folder
        self._draw, self._labels, self._min_score = draw, labels, min_score
        self._listed: list[dict[str, Any]] = []
        self._videos: dict[Path, Callable[[np.ndarray], None]] = {}
        self._open = ExitStack()

    def add(self, inference: Inference) -> None:
        """Write the files of one picture."""
        self._listed.append(inference.to_dict(self._min_score))
        name, path = inference.picture.name, inference.picture.path
        if self._labels and inference.labels is not None:
            self._png(f'{name}_labels.png', label_image(inference))
        if self._labels and inference.segment_map is not None:
            self._png(f'{name}_panoptic.png', panoptic_image(inference))
        if not self._draw:
            return
        if path is not None and path.suffix.lower() in VIDEO_SUFFIXES:
            self._video(path)(video_frame(inference, self._min_score))
        else:
            figure = draw(inference, min_score=self._min_score)
            write_figure(self.folder / f'{name}.png', figure, dpi=90)

    def _video(self, path: Path) -> Callable[[np.ndarray], None]:
        if path not in self._videos:
            target = self.folder / f'{path.stem}.mp4'
            self._videos[path] = self._open.enter_context(_open_video(target, path))
        return self._videos[path]

    def summary(self) -> str:
        """Summary for the terminal."""
        times = [one['milliseconds'] for one in self._listed]
        return (
            f'{len(times)} picture(s), median {median(times):.0f} ms each; '
            f'{self.folder}/results.json has all figures'
        )

    def _png(self, name: str, image: np.ndarray) -> None:
        _, png = cv2.imencode('.png', image)
        write_bytes(self.folder / name, png.data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Close videos and write ``results.json``, also after an error."""
        try:
            with self._open:  # without the error, so that the frames so far are kept
                if error is not None and not self._listed:
                    return  # don't overwrite the results of an earlier run
                write_text(self.folder / 'results.json', json.dumps(self._listed, indent=1) + '\n')
        except OSError:
            if not isinstance(error, OSError):  # else the first failure is reported
                raise


@contextmanager
def _open_video(target: Path, source: Path) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a video of twice another's width; OpenCV does not report failures itself."""
    read = cv2.VideoCapture(str(source))
    fps = read.get(cv2.CAP_PROP_FPS) or 25.0
    width, height = (
        int(read.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    )
    read.release()
    frames = 0

    def write(frame: np.ndarray) -> None:
        nonlocal frames
        writer.write(frame)
        frames += 1

    with whole_file(target) as temporary:
        codec = cv2.VideoWriter_fourcc(*'mp4v')
        writer = cv2.VideoWriter(str(temporary), codec, fps, (2 * width, height))
        try:
            yield write
        finally:
            writer.release()
        written = cv2.VideoCapture(str(temporary)).get(cv2.CAP_PROP_FRAME_COUNT)
        if written != frames:
            raise OSError(
                errno.EIO,
                f'{written:.0f} of {frames} frames of {2 * width}x{height} pixels were '
                'written: is the disk full?',
                str(target),
            )


def label_image(inference: Inference) -> np.ndarray:
    """Class indices as an (h, w) image: uint8 up to 255 classes (255 = none), else uint16.

    Raises:
        ValueError: if there are more classes than fit 16 bits.
    """
    labels = inference.labels
    highest = max(int(labels.max()), inference.void)
    if highest > 65535:
        raise ValueError(f'class {highest} exceeds 65535, the largest of a label map')
    return labels.astype(np.uint8 if highest <= 255 else np.uint16)


def panoptic_image(inference: Inference) -> np.ndarray:
    """Segment ids in COCO's panoptic format, (h, w, 3) uint8 BGR.

    An id is R + 256 G + 65536 B; 0 is no segment.
    """
    numbers = inference.segment_map[..., None]
    return (numbers >> np.array([16, 8, 0]) & 255).astype(np.uint8)


def video_frame(inference: Inference, min_score: float) -> np.ndarray:
    """(h, 2 w, 3) uint8 BGR: the prediction next to how often each location was kept."""
    shown = predicted(inference, min_score)[..., ::-1]
    image = inference.picture.rgb[..., ::-1]
    if inference.choices:
        share = kept_counts(inference) / len(inference.choices)
    elif inference.tiles is not None:
        share = inference.tiles.on_picture(image.shape[:2]).astype(float)
    else:
        share = np.ones(image.shape[:2])
    return np.concatenate([shown, dim(image, share)], axis=1)
