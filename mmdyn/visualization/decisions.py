"""Pictures of what a sparse backbone decided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mmdyn.sparsity import Decision

DIM = 0.25
"""Brightness left to a location on the fast path."""


def kept_map(decision: Decision, index: int, hw: tuple[int, int], stride: int) -> np.ndarray:
    """Where one image's locations were kept, at the image's size.

    Args:
        decision: of a batch, padded or not.
        index: which image of it.
        hw: (h, w) of the picture in pixels, without padding.
        stride: pixels per location, the backbone's ``sparse_stride``.

    Returns:
        (h, w) bool, True = slow path. Pixels beyond the last location, which a backbone that
        rounds down leaves out, show the last one.
    """
    kept = decision.keep_mask[index].view(decision.hw).detach().cpu().numpy() > 0
    real = np.ones(decision.hw, bool)
    if decision.valid_mask is not None:
        real = decision.valid_mask[index].view(decision.hw).cpu().numpy()
    rows, columns = (
        np.minimum(np.arange(side) // stride, real.any(axis=axis).sum() - 1)
        for side, axis in zip(hw, (1, 0), strict=True)
    )
    return kept[np.ix_(rows, columns)]


def dim_dropped(image: np.ndarray, decision: Decision, stride: int, index: int = 0) -> np.ndarray:
    """An image with the kept locations clear and the others darkened.

    Args:
        image: (h, w, 3) uint8.
        decision: about a batch that holds the image.
        stride: pixels per location, the backbone's ``sparse_stride``.
        index: which image of the batch.

    Returns:
        (h, w, 3) uint8.
    """
    return dim(image, kept_map(decision, index, image.shape[:2], stride))


def dim(image: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """An (h, w, 3) uint8 image, darkened where ``clear`` is not 1.

    Args:
        image: the image.
        clear: (h, w) in [0, 1], bool or float; in between it is darkened in part.
    """
    return (image * (DIM + (1 - DIM) * clear[..., None])).astype(np.uint8)


def draw_panels(
    image: np.ndarray,
    labels: np.ndarray,
    decisions: Sequence[Decision],
    palette: Sequence[Sequence[int]],
    stride: int,
    index: int = 0,
) -> Figure:
    """Image, prediction, and one panel per predictor, side by side.

    Args:
        image: (h, w, 3) uint8, RGB.
        labels: (h, w) int, predicted classes; outside the palette = no class.
        decisions: of the forward that predicted.
        palette: RGB of each class.
        stride: pixels per location, the backbone's ``sparse_stride``.
        index: which image of the batch the decisions are about.

    Returns:
        A figure, to be saved with ``savefig``.
    """
    panels = [('image', image), ('prediction', colour_labels(labels, palette))]
    for number, decision in enumerate(decisions):
        share = decision.kept_fraction()[index].item()
        title = f'predictor {number}: {share:.0%} on the slow path'
        panels.append((title, dim_dropped(image, decision, stride, index)))
    return draw_rows([panels])


def colour_labels(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """(h, w) classes -> (h, w, 3) uint8; black where a class is outside the palette."""
    colours = np.array([*palette, (0, 0, 0)], dtype=np.uint8)
    return colours[np.minimum(labels, len(palette)).astype(np.int64)]


def draw_rows(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> Figure:
    """Rows of titled pictures.

    Args:
        rows: of equal length; each picture (h, w, 3) uint8 with its title.

    Returns:
        A figure, to be saved with ``savefig``.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(2.9 * columns, 3.2 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, panels in zip(grid, rows, strict=True):
        for axes, (title, picture) in zip(line, panels, strict=True):
            axes.imshow(picture, interpolation='nearest')
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    return figure
