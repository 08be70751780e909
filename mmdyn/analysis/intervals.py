"""Bootstrap intervals of mean IoU over validation images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

_DRAWS = 2000
_LEVEL = 95  # per cent


def bootstrap_miou(
    areas: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor] | None = None
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a data set's mean IoU, over its images.

    Images are drawn with replacement, their areas summed and the mean taken over the classes that
    occur, as in mmseg's ``IoUMetric`` (Efron and Tibshirani, An Introduction to the Bootstrap,
    chapter 13). Images are assumed independent: for frames of one video the interval is too narrow.
    It does not include the variation between trainings.

    Args:
        areas: intersections and unions, (images, classes) in pixels.
        reference: of another model on the same images: the interval is then of the *difference*,
            which is much narrower, as the same images are hard for both.

    Returns:
        Lower and upper end in per cent (or percentage points).

    Raises:
        ValueError: if shapes differ, or areas are empty or all 0.
    """
    pairs = [areas] if reference is None else [areas, reference]
    shapes = {tuple(one.shape) for pair in pairs for one in pair}
    if len(shapes) != 1 or areas[0].ndim != 2 or not len(areas[0]):
        raise ValueError(
            f'areas must have one shape (images, classes) with at least one image, got {shapes}'
        )
    if not all(unions.sum() > 0 for _, unions in pairs):
        raise ValueError('unions are all 0: no image has a labelled pixel')
    images = len(areas[0])
    # Number of times each image was drawn: summing areas is then one matrix product.
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), _DRAWS)
    own, *others = (_miou(drawn.astype(np.float64), *pair) for pair in pairs)
    tail = (100 - _LEVEL) / 2
    low, high = np.percentile(own - others[0] if others else own, [tail, 100 - tail])
    return float(low), float(high)


def _miou(drawn: np.ndarray, intersections: Tensor, unions: Tensor) -> np.ndarray:
    """Mean IoU in per cent of every draw (draws,), over the classes in the drawn images."""
    union = drawn @ unions.double().numpy()
    with np.errstate(invalid='ignore'):
        iou = np.where(union > 0, drawn @ intersections.double().numpy() / union, np.nan)
    return 100 * np.nanmean(iou, axis=1)
