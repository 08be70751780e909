"""How far a mean IoU would move with other validation images of the same kind."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def bootstrap_miou(
    intersections: Tensor,
    unions: Tensor,
    *,
    reference: tuple[Tensor, Tensor] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a data set's mean IoU, over its images.

    Images are drawn with replacement, their areas summed and the mean taken over
    the classes that occur, as mmseg's ``IoUMetric`` does over the whole set
    (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13). Images are
    taken to be independent: for frames of one video the interval is too narrow.
    What another training would have given is not in it.

    Args:
        intersections, unions: (images, classes) areas in pixels.
        reference: the same of another model on the same images: the interval is
            then of the *difference* to it, which is far narrower than either's,
            because both find the same images hard.
        level: probability that the interval covers, in (0, 1).
        draws: how often images are drawn.
        seed: of the draws.

    Returns:
        Lower and upper end in per cent (or points of per cent).

    Raises:
        ValueError: areas of different shapes, of no image or all empty, or ``level``
            or ``draws`` out of range.
    """
    pairs = [(intersections, unions), *([] if reference is None else [reference])]
    shapes = {tuple(areas.shape) for pair in pairs for areas in pair}
    if len(shapes) != 1 or intersections.ndim != 2 or not len(intersections):
        raise ValueError(
            f'areas must have one shape (images, classes) with at least one image, got {shapes}'
        )
    if not all(areas.sum() > 0 for _, areas in pairs):
        raise ValueError('unions are all 0: no image holds a labelled pixel')
    if not 0 < level < 1:
        raise ValueError(f'level must be in (0, 1), got {level}')
    if draws < 1:
        raise ValueError(f'draws must be at least 1, got {draws}')
    images = len(intersections)
    rng = np.random.default_rng(seed)
    # How often each image was drawn: summing areas is then one matrix product.
    counts = rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
    values = [_miou(counts, i.double().numpy(), u.double().numpy()) for i, u in pairs]
    values = values[0] - values[1] if reference is not None else values[0]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _miou(counts: np.ndarray, intersections: np.ndarray, unions: np.ndarray) -> np.ndarray:
    """Mean IoU in per cent of every draw (draws,); classes that no drawn image has don't count."""
    union = counts @ unions
    with np.errstate(invalid='ignore'):
        iou = np.where(union > 0, counts @ intersections / union, np.nan)
    return 100 * np.nanmean(iou, axis=1)
