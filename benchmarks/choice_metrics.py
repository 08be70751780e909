"""Metrics per image that can be added up, so that images can be drawn with replacement."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmdyn.engine.boundary import BoundaryFScore

MOST = 1000
"""Detections of a picture that count; COCO's 100 are fewer than some pictures of nuclei have."""


class BoundaryScores(BoundaryFScore):
    """Keeps the scores of all images.

    Attributes:
        scores: (images,) in per cent.
    """

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """Store and average the scores."""
        self.scores = 100 * np.asarray(results)
        return super().compute_metrics(results)


def miou(areas: np.ndarray) -> np.ndarray:
    """Mean IoU in per cent of (..., 2, classes) intersections and unions."""
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = np.where(areas[..., 1, :] > 0, areas[..., 0, :] / areas[..., 1, :], np.nan)
    return 100 * np.nanmean(iou, axis=-1)


def match_detections(annotations: Path, results: Path) -> dict[str, dict[str, np.ndarray]]:
    """Match the masks of a COCO result file with the instances, by pycocotools.

    Up to :data:`MOST` detections of each picture count.

    Args:
        annotations, results: JSON files.

    Returns:
        For ``'mask_ap'`` and ``'mask_ap_small'``: ``image`` (detections,) index, by descending
        score, ``hits`` and ``ignored`` (thresholds, detections), and ``instances`` (images,), the
        number to be found.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        found = COCOeval(truth, truth.loadRes(str(results)), 'segm')
        found.params.maxDets = [MOST]
        found.evaluate()
    images = len(found.params.imgIds)
    names = dict(mask_ap=0, mask_ap_small=found.params.areaRngLbl.index('small'))
    return {
        name: _flat(found.evalImgs[area * images : (area + 1) * images])
        for name, area in names.items()
    }


def _flat(images: Sequence[dict | None]) -> dict[str, np.ndarray]:
    found = [(index, image) for index, image in enumerate(images) if image is not None]
    scores = np.concatenate([image['dtScores'] for _, image in found])
    order = np.argsort(-scores, kind='mergesort')
    where = np.concatenate([np.full(len(image['dtScores']), index) for index, image in found])
    instances = np.zeros(len(images))
    for index, image in found:
        instances[index] = np.sum(image['gtIgnore'] == 0)
    hits = np.concatenate([image['dtMatches'] > 0 for _, image in found], axis=1)
    ignored = np.concatenate([image['dtIgnore'] > 0 for _, image in found], axis=1)
    return dict(
        image=where[order],
        hits=hits[:, order],
        ignored=ignored[:, order],
        instances=instances,
    )


def average_precision(matches: dict[str, np.ndarray], draws: np.ndarray) -> np.ndarray:
    """COCO's AP (0.50:0.95, 101 recalls) of drawn images, in per cent.

    Args:
        matches: one of :func:`match_detections`.
        draws: (draws, images), how often each image was drawn.

    Returns:
        (draws,).
    """
    recalls = np.linspace(0, 1, 101)
    out = np.zeros(len(draws))
    for row, drawn in enumerate(draws):
        weight = drawn[matches['image']]
        total = drawn @ matches['instances']
        for hits, ignored in zip(matches['hits'], matches['ignored'], strict=True):
            good = np.cumsum(weight * (hits & ~ignored))
            bad = np.cumsum(weight * (~hits & ~ignored))
            precision = good / np.maximum(good + bad, np.spacing(1))
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(good / total, recalls, side='left')
            inside = at < len(precision)
            out[row] += precision[at[inside]].sum() / len(recalls)
    return 100 * out / len(matches['hits'])
