"""Inferences as files: drawings, videos, label maps, one JSON."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from mmdyn.apis.inference import Inference
from mmdyn.apis.sources import VIDEO_SUFFIXES
from mmdyn.visualization.decisions import dim
from mmdyn.visualization.inference import draw, kept_counts, predicted
from mmdyn.whole_files import whole_file, write_text

DPI = 90


class Writer:
    """Writes inferences into a folder; ``results.json`` when it is closed.

    Args:
        folder: there already.
        draw: whether to draw.
        labels: whether to write a segmentor's label maps, see :func:`label_image`, and a
            panoptic model's segments, see :func:`panoptic_image`.
        min_score: least score of an instance.
    """

    def __init__(
        self, folder: Path, *, draw: bool = True, labels: bool = False, min_score: float = 0.3
    ) -> None:
        self.folder = folder
        self._draw, self._labels, self._min_score = draw, labels, min_score
        self._listed: list[dict[str, Any]] = []
        self._videos: dict[Path, cv2.VideoWriter] = {}

    def add(self, inference: Inference) -> None:
        """Write what belongs to one picture."""
        self._listed.append(inference.to_dict(self._min_score))
        name, path = inference.picture.name, inference.picture.path
        if self._labels and inference.labels is not None:
            with whole_file(self.folder / f'{name}_labels.png') as file:
                cv2.imwrite(str(file), label_image(inference))
        if self._labels and inference.segment_map is not None:
            with whole_file(self.folder / f'{name}_panoptic.png') as file:
                cv2.imwrite(str(file), panoptic_image(inference))
        if not self._draw:
            return
        if path is not None and path.suffix.lower() in VIDEO_SUFFIXES:
            self._video(path).write(video_frame(inference, self._min_score))
        else:
            with whole_file(self.folder / f'{name}.png') as file:
                draw(inference, min_score=self._min_score).savefig(file, dpi=DPI)

    def _video(self, path: Path) -> cv2.VideoWriter:
        if path not in self._videos:
            source = cv2.VideoCapture(str(path))
            fps = source.get(cv2.CAP_PROP_FPS) or 25.0
            size = tuple(
                int(source.get(side))
                for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
            )
            source.release()
            self._videos[path] = cv2.VideoWriter(
                str(self.folder / f'{path.stem}.mp4'),
                cv2.VideoWriter_fourcc(*'mp4v'),
                fps,
                (2 * size[0], size[1]),
            )
        return self._videos[path]

    def summary(self) -> str:
        """What was done, for people."""
        times = [one['milliseconds'] for one in self._listed]
        if not times:
            return 'there was nothing to predict on'
        return (
            f'{len(times)} picture(s), median {median(times):.0f} ms each; '
            f'{self.folder}/results.json has all figures'
        )

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what is open; what was done by then is kept if the work was cut short."""
        for video in self._videos.values():
            video.release()
        write_text(self.folder / 'results.json', json.dumps(self._listed, indent=1) + '\n')


def label_image(inference: Inference) -> np.ndarray:
    """(h, w) class indices: uint8 up to 255 classes, where 255 stands for none, else uint16.

    Args:
        inference: of a model with ``labels``.

    Raises:
        ValueError: if there are more classes than 16 bits can tell apart.
    """
    labels = inference.labels
    highest = max(int(labels.max()), inference.void)
    if highest > 65535:
        raise ValueError(f'class {highest} is beyond the 65535 that a label map can hold')
    return labels.astype(np.uint8 if highest <= 255 else np.uint16)


def panoptic_image(inference: Inference) -> np.ndarray:
    """(h, w, 3) uint8, blue first: segment numbers as in COCO's panoptic format.

    A number is R + 256 G + 65536 B; 0 is no segment.

    Args:
        inference: of a panoptic model.
    """
    numbers = inference.segment_map[..., None]
    return (numbers >> np.array([16, 8, 0]) & 255).astype(np.uint8)


def video_frame(inference: Inference, min_score: float) -> np.ndarray:
    """(h, 2 w, 3) uint8, blue first: the prediction beside how often each location was kept."""
    shown = predicted(inference, min_score)[..., ::-1]
    image = inference.picture.image
    if inference.choices:
        share = kept_counts(inference) / len(inference.choices)
    elif inference.tiles is not None:
        share = inference.tiles.on_picture(inference.tiles.kept, image.shape[:2]).astype(float)
    else:
        share = np.ones(image.shape[:2])
    return np.concatenate([shown, dim(image, share)], axis=1)
