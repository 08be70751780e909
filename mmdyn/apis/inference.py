"""What came out for one picture: prediction, and where it was computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mmdyn.pictures import Picture


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
        """Bring a map of this choice, (H, W), to the (h, w) pixels of the picture."""
        rows, columns = (
            np.minimum((np.arange(side) + 0.5) * extent / side, count - 1e-6).astype(int)
            for side, extent, count in zip(hw, self.picture_hw, values.shape, strict=True)
        )
        return values[rows[:, None], columns[None, :]]


@dataclass(frozen=True, eq=False)
class Inference:
    """A prediction.

    Attributes:
        picture: what it is about.
        sample: the host's, in the picture's own pixels.
        choices: one per predictor of the backbone, in order; none of a dense one.
        tiles: the choice of a head or neck that goes by tiles, if there is one.
        classes: names, by class index.
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
        """(h, w) int, the class of each pixel; None of a detector."""
        predicted = getattr(self.sample, 'pred_sem_seg', None)
        return None if predicted is None else predicted.data[0].cpu().numpy()

    def to_dict(self, min_score: float = 0.3) -> dict[str, Any]:
        """What JSON can hold of it.

        Args:
            min_score: least score of an instance to be listed.
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
        if self.labels is not None:
            return found | {'classes': self._class_shares()}
        return found | {'instances': self._instances(min_score)}

    def _class_shares(self) -> dict[str, float]:
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        shares = counts / max(counts.sum(), 1)
        return {
            name: round(float(share), 4)
            for name, share in zip(self.classes, shares, strict=False)
            if share > 0
        }

    def _instances(self, min_score: float) -> list[dict[str, Any]]:
        instances = self.sample.pred_instances.cpu().numpy()
        listed = []
        for i in np.flatnonzero(instances.scores >= min_score):
            one = {
                'class': self.classes[int(instances.labels[i])],
                'score': round(float(instances.scores[i]), 4),
                'box': [round(float(value), 1) for value in instances.bboxes[i]],
            }
            if 'masks' in instances:
                contours, _ = cv2.findContours(
                    instances.masks[i].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
                )
                one['polygons'] = [contour.ravel().tolist() for contour in contours]
            listed.append(one)
        return listed
