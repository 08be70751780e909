"""Drawings of predictions and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmdyn.engine.boundary import border
from mmdyn.engine.predictions import Inference
from mmdyn.engine.recording import Choice

DIM = 0.25
"""Brightness of locations on the fast path."""
_SHOWN = 1500  # largest side of a drawn picture
_HEAT = 'cividis'  # safe for colour-blind readers
_OPACITY = 0.6  # of a prediction over its picture
_UNNAMED = (128, 128, 128)  # RGB of instances of unnamed classes


@dataclass(frozen=True, eq=False)
class Panel:
    """A part of a drawing.

    Attributes:
        title: of the panel.
        image: (h, w, 3) uint8 RGB.
        legend: RGB colours with labels.
    """

    title: str
    image: np.ndarray
    legend: Sequence[tuple[Sequence[int], str]] = ()


def dim(image: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Darken an (h, w, 3) uint8 image where ``clear``, (h, w) in [0, 1], is below 1."""
    shown = np.empty(image.shape, np.uint8)
    for row, light in enumerate(clear):  # row by row, as a float image takes 24 bytes per pixel
        shown[row] = image[row] * (DIM + (1 - DIM) * light[:, None])
    return shown


def colour_labels(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """(h, w) classes -> (h, w, 3) uint8; black for classes outside the palette."""
    colours = np.array([*palette, (0, 0, 0)], dtype=np.uint8)
    return colours[np.minimum(labels, len(palette)).astype(np.int64)]


def predicted(inference: Inference, min_score: float = 0.3, step: int = 1) -> np.ndarray:
    """Draw the prediction over the picture, (h, w, 3) uint8 RGB.

    Classes are overlaid, panoptic segments get white borders; instances with at least ``min_score``
    get boxes and, without classes, masks. Only every ``step``-th row and column is drawn.
    """
    image = inference.picture.rgb[::step, ::step].astype(np.float32)
    labels, segments = (
        None if one is None else one[::step, ::step]
        for one in (inference.labels, inference.segment_map)
    )
    if labels is not None:
        known = (labels < len(inference.palette))[..., None]
        colours = colour_labels(labels, inference.palette)
        image = np.where(known, _OPACITY * colours + (1 - _OPACITY) * image, image)
    if segments is not None:
        image[border(segments, np.ones(segments.shape, bool))] = 255
    # The last entry is for unnamed classes.
    palette = np.array([*inference.palette, _UNNAMED], np.float32)
    width = max(1, round(min(image.shape[:2]) / 200))
    for instance in reversed(inference.instances(min_score) or []):
        colour = palette[min(instance.label, len(palette) - 1)]
        if instance.mask is not None and labels is None:
            mask = instance.mask[::step, ::step]
            image[mask] = _OPACITY * colour + (1 - _OPACITY) * image[mask]
        x1, y1, x2, y2 = (max(round(value / step), 0) for value in instance.box)
        frame = np.zeros(image.shape[:2], bool)
        frame[y1:y2, x1:x2] = True
        frame[y1 + width : max(y2 - width, 0), x1 + width : max(x2 - width, 0)] = False
        image[frame] = colour
    return image.astype(np.uint8)


def classes_in(inference: Inference, min_score: float = 0.3) -> list[int]:
    """Classes drawn by :func:`predicted`, at most the eight that cover most pixels."""
    labels = inference.labels
    if labels is None:
        labels = np.array([one.label for one in inference.instances(min_score) or []], int)
    covered = np.bincount(labels[labels < len(inference.classes)])
    return [int(i) for i in np.argsort(-covered, kind='stable')[:8] if covered[i]]


def kept_counts(inference: Inference) -> np.ndarray:
    """(h, w) int: number of predictors that kept each pixel's location."""
    hw = inference.picture.image.shape[:2]
    return sum(
        (choice.on_picture(hw).astype(int) for choice in inference.choices), np.zeros(hw, int)
    )


def decision_panels(inference: Inference, step: int = 1) -> list[Panel]:
    """One panel per choice with the fast path darkened, and a heat map of how often kept.

    The heat map is included with several predictors, after their panels.
    """
    image, hw = inference.picture.rgb[::step, ::step], inference.picture.image.shape[:2]
    panels = [
        Panel(
            f'{name}: {choice.fraction:.0%} on the slow path',
            dim(image, choice.on_picture(hw)[::step, ::step]),
        )
        for name, choice in _named_choices(inference)
    ]
    most = len(inference.choices)
    if most > 1:
        colours = mpl.colormaps[_HEAT](np.linspace(0, 1, most + 1), bytes=True)[:, :3]
        heat = colours[kept_counts(inference)[::step, ::step]]
        legend = [(tuple(colour), str(count)) for count, colour in enumerate(colours)]
        panels.insert(most, Panel('predictors that kept a location', heat, legend))
    return panels


def draw(inference: Inference, *, min_score: float = 0.3) -> Figure:
    """Draw picture, prediction, one panel per predictor, counts of kept locations, and scores.

    Instances with at least ``min_score`` are drawn. Save the figure with ``savefig``.
    """
    height, width = inference.picture.image.shape[:2]
    step = 1 + max(height, width) // _SHOWN
    decisions = decision_panels(inference, step)
    hit = classes_in(inference, min_score)
    classes = [(inference.palette[i], inference.classes[i]) for i in hit]
    panels = [
        Panel('picture', inference.picture.rgb[::step, ::step]),
        Panel(_title(inference), predicted(inference, min_score, step), classes),
        *decisions,
    ]
    count = len(panels) + bool(decisions)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(
        figsize=(3.4 * columns, rows * (0.5 + 3.4 * min(height / width, 1.6))), layout='constrained'
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(panel.title, fontsize=9)
        axes.imshow(panel.image, interpolation='nearest')
        patches = [Patch(color=np.divide(rgb, 255), label=name) for rgb, name in panel.legend]
        if patches:
            axes.legend(handles=patches, fontsize=6, ncols=2, loc='lower left', framealpha=0.8)
    if decisions:
        _draw_scores(grid[len(panels)], _named_choices(inference))
    return figure


def _title(inference: Inference) -> str:
    """Of the panel with the prediction: a classifier's best classes."""
    top = inference.top(3)
    if top is None:
        return 'prediction'
    return ', '.join(f'{inference.name_of(label)} {score:.0%}' for label, score in top)


def to_array(figure: Figure, width: int) -> np.ndarray:
    """Render a figure as (h, w, 3) uint8 RGB, about ``width`` pixels wide."""
    figure.set_dpi(width / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _named_choices(inference: Inference) -> list[tuple[str, Choice]]:
    named = [(f'predictor {i}', choice) for i, choice in enumerate(inference.choices)]
    return named + ([] if inference.tiles is None else [('tiles', inference.tiles)])


def _draw_scores(axes: Axes, named: Sequence[tuple[str, Choice]]) -> None:
    """Draw a histogram of each choice's scores."""
    axes.set_axis_on()
    axes.set_title('probability of being kept', fontsize=9)
    for number, (name, choice) in enumerate(named):
        axes.hist(
            choice.scores[choice.real],
            bins=np.linspace(0, 1, 26),
            histtype='step',
            linestyle=('-', '--', ':', '-.')[number % 4],
            color=f'C{number}',
            density=True,
            label=name,
        )
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
