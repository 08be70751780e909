"""Pictures of what a sparse backbone decided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mmdyn.sparsity import Decision

DIM = 0.25
"""Brightness left to a location on the fast path."""


def kept_map(decision: Decision, index: int, hw: tuple[int, int]) -> np.ndarray:
    """Where one image's locations were kept, at the image's size.

    Args:
        decision: of a batch.
        index: which image of it.
        hw: (h, w) of the picture in pixels.

    Returns:
        (h, w) bool, True = slow path.
    """
    grid = decision.keep_mask[index].detach().cpu().numpy().reshape(decision.hw) > 0
    return np.asarray(Image.fromarray(grid).resize(hw[::-1], Image.Resampling.NEAREST))


def dim_dropped(image: np.ndarray, decision: Decision, index: int = 0) -> np.ndarray:
    """An image with the kept locations clear and the others darkened.

    Args:
        image: (h, w, 3) uint8.
        decision: about a batch that holds the image.
        index: which image of the batch.

    Returns:
        (h, w, 3) uint8.
    """
    kept = kept_map(decision, index, image.shape[:2])
    return np.where(kept[..., None], image, DIM * image).astype(np.uint8)


def draw_panels(
    image: np.ndarray,
    labels: np.ndarray,
    decisions: Sequence[Decision],
    palette: Sequence[Sequence[int]],
    index: int = 0,
) -> Figure:
    """Image, prediction, and one panel per predictor, side by side.

    Args:
        image: (h, w, 3) uint8, RGB.
        labels: (h, w) int, predicted classes; outside the palette = no class.
        decisions: of the forward that predicted.
        palette: RGB of each class.
        index: which image of the batch the decisions are about.

    Returns:
        A figure, to be saved with ``savefig``.
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(palette)] = palette
    panels = [('image', image), ('prediction', colours[labels.astype(np.uint8)])]
    for number, decision in enumerate(decisions):
        share = decision.kept_fraction()[index].item()
        title = f'predictor {number}: {share:.0%} on the slow path'
        panels.append((title, dim_dropped(image, decision, index)))
    figure = Figure(figsize=(2.9 * len(panels), 3.2), layout='constrained')
    for axes, (title, picture) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(picture, interpolation='nearest')
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure
