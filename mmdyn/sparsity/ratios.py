"""Keep ratios per predictor, derived from the single ratio that the user sets."""

from typing import Literal

STEP = 0.2
"""Decrease of the linear schedule from one predictor to the next."""

MIN_KEEP_RATIO = 0.1
"""Lower bound of the linear schedule, so that some locations always take the slow path."""

_DIGITS = 6


def falling_keep_ratios(
    ratio: float, count: int, kind: Literal['linear', 'geometric'] = 'linear'
) -> tuple[float, ...]:
    """Derive the keep ratio of each predictor from that of the first.

    Linear (Swin, ConvNeXt): ``ratio``, ``ratio - 0.2``, ``ratio - 0.4`` ..., not below 0.1 or a
    smaller ``ratio``. Geometric (ViT): ``ratio``, ``ratio ** 2``, ``ratio ** 3`` .... A ratio of 1
    means the dense model and gives ones throughout.

    Args:
        ratio: of the first predictor, in (0, 1].
        count: number of predictors.
        kind: the schedule.

    Returns:
        ``count`` ratios in (0, 1], rounded to 6 digits.

    Raises:
        ValueError: if ``ratio`` is outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f'a keep ratio must be above 0 and at most 1, got {ratio}')
    if ratio == 1:
        return (1.0,) * count
    if kind == 'geometric':
        ladder, floor = [ratio ** (k + 1) for k in range(count)], 0.0
    else:
        ladder, floor = [ratio - STEP * k for k in range(count)], min(ratio, MIN_KEEP_RATIO)
    smallest = 10.0**-_DIGITS  # not rounded to 0
    return tuple(max(round(max(step, floor), _DIGITS), smallest) for step in ladder)
