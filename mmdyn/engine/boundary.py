"""Accuracy of the borders in a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric

from mmdyn.registry import METRICS


@METRICS.register_module()
class BoundaryFScore(BaseMetric):
    """Mean F-score of class borders, to which mIoU is insensitive.

    A border pixel is correct if the other map has a border of the same class within a tolerance.
    Precision and recall give an F-score for each class with a border in an image or its prediction,
    averaged over classes, then over images (Csurka et al., "What is a good evaluation measure for
    semantic segmentation?", BMVC 2013). Borders of ignored pixels don't count. Reports ``mBF`` in
    percent.

    Args:
        tolerance: distance in pixels; below 1, a fraction of the image's diagonal.
        ignore_index: label that is not evaluated.
        **kwargs: of mmengine's ``BaseMetric``.

    Raises:
        ValueError: if ``tolerance`` is negative.
    """

    def __init__(self, tolerance: float = 0.0075, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not tolerance >= 0:
            raise ValueError(f'BoundaryFScore needs a tolerance of 0 or more, got {tolerance}')
        self.tolerance = tolerance
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score a batch of predictions with ground truth."""
        for sample in data_samples:
            maps = (sample[key]['data'] for key in ('pred_sem_seg', 'gt_sem_seg'))
            pred, truth = (m.squeeze(0).cpu().numpy() for m in maps)
            score = boundary_f_score(pred, truth, self.tolerance, self.ignore_index)
            if score is not None:
                self.results.append(score)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over the images with a border."""
        return dict(mBF=round(100 * float(np.mean(results)), 4) if results else float('nan'))


def boundary_f_score(
    pred: np.ndarray, truth: np.ndarray, tolerance: float = 0.0075, ignore_index: int = 255
) -> float | None:
    """Mean F-score over the classes of one image, (H, W) int; see :class:`BoundaryFScore`.

    Returns:
        A number in [0, 1]; None if neither map has a border.

    Raises:
        ValueError: if the shapes differ.
    """
    if pred.shape != truth.shape:
        raise ValueError(f'prediction {pred.shape} and truth {truth.shape} differ in shape')
    known = truth != ignore_index
    edges = [border(labels, known) for labels in (pred, truth)]
    classes = np.union1d(pred[edges[0]], truth[edges[1]])
    if not len(classes):
        return None
    radius = round(tolerance * np.hypot(*truth.shape)) if tolerance < 1 else round(tolerance)
    steps = np.arange(-radius, radius + 1) ** 2
    disc = (steps[:, None] + steps <= radius**2).astype(np.uint8)
    scores = []
    for label in classes:
        found, wanted = (
            (edge & (labels == label)).astype(np.uint8)
            for edge, labels in zip(edges, (pred, truth), strict=True)
        )
        right = (found & cv2.dilate(wanted, disc)).sum() / max(found.sum(), 1)
        seen = (wanted & cv2.dilate(found, disc)).sum() / max(wanted.sum(), 1)
        scores.append(2 * right * seen / (right + seen) if right + seen else 0.0)
    return float(np.mean(scores))


def border(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mark the pixels next to one with another label.

    Args:
        labels: (H, W) int.
        known: (H, W) bool; other pixels neither are borders nor make their neighbours so.

    Returns:
        (H, W) bool.
    """
    edge = np.zeros(labels.shape, dtype=bool)
    # The second pass marks the same array through transposed views.
    for marked, label, seen in ((edge, labels, known), (edge.T, labels.T, known.T)):
        differ = (label[:-1] != label[1:]) & seen[:-1] & seen[1:]
        marked[:-1] |= differ
        marked[1:] |= differ
    return edge
