"""What came out for one picture: prediction, and where it was computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mmdyn.pictures import Picture

PREDICTIONS = ('pred_sem_seg', 'pred_panoptic_seg', 'pred_instances')
"""What a host's sample may hold that can be shown."""

INSTANCE_OFFSET = 1000
"""mmdet's: a pixel of a panoptic prediction is class + 1000 · instance, the instances of things
counted from 1, stuff 0."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What a predictor chose in a picture.

    Attributes:
        kept: (H, W) bool, the locations, blocks or tiles on the slow path.
        scores: (H, W) float32, the probability of being kept.
        real: (H, W) bool, False in a batch's padding.
        picture_hw: (h, w) of the part of the model's input that shows the picture, in
            locations; may end inside of one.
    """

    kept: np.ndarray
    scores: np.ndarray
    real: np.ndarray
    picture_hw: tuple[float, float]

    @property
    def fraction(self) -> float:
        """Kept share of the real locations."""
        return float(self.kept[self.real].mean())

    def on_picture(self, values: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
        """Bring a map of this choice, (H, W), to the (h, w) pixels of the picture.

        Pixels beyond the last real location, which a backbone that rounds down leaves out,
        show the last one.
        """
        counts = (int(self.real.any(axis=axis).sum()) for axis in (1, 0))
        rows, columns = (
            np.minimum((np.arange(side) + 0.5) * extent / side, count - 1).astype(int)
            for side, extent, count in zip(hw, self.picture_hw, counts, strict=True)
        )
        return values[rows[:, None], columns[None, :]]


@dataclass(frozen=True, eq=False)
class Instance:
    """An object that was found.

    Attributes:
        label: its class's index.
        score: in [0, 1].
        box: (x1, y1, x2, y2) in pixels, around the mask where the model gives no box.
        mask: (h, w) bool, or None.
    """

    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Inference:
    """A prediction.

    Attributes:
        picture: what it is about.
        sample: the host's, in the picture's own pixels.
        choices: one per predictor of the backbone, in order; none of a dense one.
        tiles: the choice of a head or neck that goes by tiles, if there is one.
        classes: names, by class index; a class beyond them is named by its index.
        palette: RGB of each class.
        seconds: the forward pass took, divided among the pictures of its batch.
    """

    picture: Picture
    sample: Any
    choices: tuple[Choice, ...]
    tiles: Choice | None
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    seconds: float

    @property
    def labels(self) -> np.ndarray | None:
        """(h, w) int64, the class of each pixel; None of a model that finds instances only.

        With one output channel it is 1 above the threshold and 0 below. What a panoptic model
        leaves without a class is :attr:`void`.
        """
        segments = _map_of(self.sample, 'pred_panoptic_seg')
        if segments is None:
            return _map_of(self.sample, 'pred_sem_seg')
        labels = segments % INSTANCE_OFFSET
        return np.where(labels < len(self.classes), labels, self.void)

    @property
    def void(self) -> int:
        """What label maps have where there is no class, 255, or 65535 where 255 may be one."""
        return 255 if len(self.classes) <= 255 else 65535

    @property
    def segment_map(self) -> np.ndarray | None:
        """(h, w) int64, the number of each pixel's segment, from 1 on, 0 = none.

        None of a model that is not panoptic.
        """
        segments = _map_of(self.sample, 'pred_panoptic_seg')
        if segments is None:
            return None
        found = self._segment_ids(segments)
        return np.where(np.isin(segments, found), np.searchsorted(found, segments) + 1, 0)

    def segments(self) -> list[dict[str, Any]]:
        """The segments of a panoptic prediction, in the order of their numbers.

        Returns:
            ``id`` (its number), ``class`` (name), ``is_thing`` (an object among others of its
            class) and ``area`` (pixels) of each.
        """
        segments = _map_of(self.sample, 'pred_panoptic_seg')
        return [
            {
                'id': number,
                'class': self.name_of(int(segment) % INSTANCE_OFFSET),
                'is_thing': bool(segment >= INSTANCE_OFFSET),
                'area': int((segments == segment).sum()),
            }
            for number, segment in enumerate(self._segment_ids(segments), 1)
        ]

    def _segment_ids(self, segments: np.ndarray) -> np.ndarray:
        """The host's ids that stand for a class, sorted."""
        ids = np.unique(segments)
        return ids[ids % INSTANCE_OFFSET < len(self.classes)]

    def instances(self, min_score: float = 0.3) -> list[Instance] | None:
        """What a detector found; None of a model that finds no instances.

        Args:
            min_score: least score of those that are listed.
        """
        found = getattr(self.sample, 'pred_instances', None)
        if found is None:
            return None
        found = found.cpu().numpy()
        masks = found.masks if 'masks' in found else [None] * len(found)
        boxes = found.bboxes if 'bboxes' in found else np.zeros((len(found), 4))
        return [
            Instance(
                int(found.labels[i]),
                float(found.scores[i]),
                _box_of(boxes[i], masks[i]),
                None if masks[i] is None else np.asarray(masks[i], bool),
            )
            for i in np.flatnonzero(found.scores >= min_score)
        ]

    def name_of(self, label: int) -> str:
        """A class's name."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def to_dict(self, min_score: float = 0.3) -> dict[str, Any]:
        """What JSON can hold of it.

        Args:
            min_score: least score of an instance to be listed.

        Returns:
            Beside what is known of the picture: ``classes``, the share of pixels of each class,
            of a segmentor; those and ``segments`` (see :meth:`segments`) of a panoptic model;
            ``instances`` of a model that finds some.
        """
        height, width = self.picture.image.shape[:2]
        found: dict[str, Any] = {
            'name': self.picture.name,
            'path': None if self.picture.path is None else str(self.picture.path),
            'size': [height, width],
            'kept_fractions': [round(choice.fraction, 4) for choice in self.choices],
            'milliseconds': round(1000 * self.seconds, 2),
        }
        if self.tiles is not None:
            found['kept_tiles'] = round(self.tiles.fraction, 4)
        if (labels := self.labels) is not None:
            found['classes'] = self._class_shares(labels)
        if self.segment_map is not None:
            found['segments'] = self.segments()
        if (instances := self.instances(min_score)) is not None:
            found['instances'] = [self._instance_dict(one) for one in instances]
        return found

    def _class_shares(self, labels: np.ndarray) -> dict[str, float]:
        found, counts = np.unique(labels[labels != self.void], return_counts=True)
        return {
            self.name_of(label): round(count / labels.size, 4)
            for label, count in zip(found.tolist(), counts.tolist(), strict=True)
        }

    def _instance_dict(self, instance: Instance) -> dict[str, Any]:
        listed = {
            'class': self.name_of(instance.label),
            'score': round(instance.score, 4),
            'box': [round(value, 1) for value in instance.box],
        }
        if instance.mask is not None:
            contours, _ = cv2.findContours(
                instance.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            listed['polygons'] = [contour.ravel().tolist() for contour in contours]
        return listed


def _map_of(sample: Any, name: str) -> np.ndarray | None:
    """(h, w) int64 of one of a sample's maps; None if it has none of that name."""
    field = getattr(sample, name, None)
    if field is None:
        return None
    # mmseg's and mmdet's word; one output channel gives floating-point zeros and ones.
    values = field.data if 'data' in field else field.sem_seg
    return values.reshape(values.shape[-2:]).long().cpu().numpy()


def _box_of(box: np.ndarray, mask: np.ndarray | None) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of an instance: the host's, or what is around its mask.

    A model without boxes gives zeros.
    """
    x1, y1, x2, y2 = box.tolist()
    if (x2 > x1 and y2 > y1) or mask is None or not mask.any():
        return x1, y1, x2, y2
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
