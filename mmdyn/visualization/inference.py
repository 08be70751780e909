"""Pictures of an inference: what was predicted, and where it was computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmdyn.apis.inference import Choice, Inference
from mmdyn.engine.boundary import border
from mmdyn.visualization.decisions import colour_labels, dim

HEAT = 'cividis'
"""Colours of heat maps, the same to people who tell red from green and to those who don't."""
HEAT_TITLE = 'predictors that kept a location'
OPACITY = 0.6
"""Of a prediction over its picture."""
UNNAMED = (128, 128, 128)
"""RGB of an instance whose class has no name."""

Panel = tuple[str, Callable[[Axes], None]]


def predicted(inference: Inference, min_score: float = 0.3) -> np.ndarray:
    """(h, w, 3) uint8, RGB: the picture under what was predicted.

    Classes are painted over it, a panoptic model's segments with white borders; instances get
    their boxes and, where no classes are painted, their masks.

    Args:
        inference: of a segmentor or a detector.
        min_score: least score of an instance to be drawn.
    """
    image = inference.picture.image[..., ::-1].astype(np.float32)
    labels, segments = inference.labels, inference.segment_map
    if labels is not None:
        known = (labels < len(inference.palette))[..., None]
        colours = colour_labels(labels, inference.palette)
        image = np.where(known, OPACITY * colours + (1 - OPACITY) * image, image)
    if segments is not None:
        image[border(segments, np.ones(segments.shape, bool))] = 255
    # Behind the last: what has no name has no colour either.
    palette = np.array([*inference.palette, UNNAMED], np.float32)
    width = max(1, round(min(image.shape[:2]) / 200))
    for instance in reversed(inference.instances(min_score) or []):
        colour = palette[min(instance.label, len(palette) - 1)]
        if instance.mask is not None and labels is None:
            image[instance.mask] = OPACITY * colour + (1 - OPACITY) * image[instance.mask]
        x1, y1, x2, y2 = (max(round(value), 0) for value in instance.box)
        frame = np.zeros(image.shape[:2], bool)
        frame[y1:y2, x1:x2] = True
        frame[y1 + width : max(y2 - width, 0), x1 + width : max(x2 - width, 0)] = False
        image[frame] = colour
    return image.astype(np.uint8)


def draw(inference: Inference, *, histograms: bool = True, min_score: float = 0.3) -> Figure:
    """Picture, prediction, one panel per predictor, how often a location was kept, scores.

    Args:
        inference: a prediction.
        histograms: whether to draw the scores.
        min_score: least score of an instance to be drawn.

    Returns:
        A figure, to be saved with ``savefig``.
    """
    panels = [
        ('picture', _show(inference.picture.image[..., ::-1])),
        ('prediction', _prediction(inference, min_score)),
        *_choices(inference),
    ]
    scored = [*inference.choices, *([inference.tiles] if inference.tiles else [])]
    if histograms and scored:
        names = [f'predictor {i}' for i in range(len(inference.choices))]
        names += ['tiles'] if inference.tiles else []
        panels.append(('probability of being kept', _histogram(names, scored)))
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    height, width = inference.picture.image.shape[:2]
    figure = Figure(
        figsize=(3.4 * columns, rows * (0.5 + 3.4 * min(height / width, 1.6))), layout='constrained'
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, paint) in zip(grid, panels, strict=False):
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
        paint(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def to_array(figure: Figure, width: int) -> np.ndarray:
    """Render a figure: (h, w, 3) uint8, RGB, about ``width`` pixels wide."""
    figure.set_dpi(width / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def kept_counts(inference: Inference) -> np.ndarray:
    """(h, w) int: how many predictors of the backbone kept each pixel's location."""
    hw = inference.picture.image.shape[:2]
    return sum(
        (choice.on_picture(choice.kept, hw).astype(int) for choice in inference.choices),
        np.zeros(hw, int),
    )


def _show(image: np.ndarray) -> Callable[[Axes], None]:
    return lambda axes: axes.imshow(image, interpolation='nearest')


def _prediction(inference: Inference, min_score: float) -> Callable[[Axes], None]:
    image, hits = predicted(inference, min_score), classes_in(inference, min_score)

    def paint(axes: Axes) -> None:
        axes.imshow(image, interpolation='nearest')
        patches = [
            Patch(color=np.asarray(inference.palette[i]) / 255, label=inference.classes[i])
            for i in hits
        ]
        if patches:
            axes.legend(handles=patches, fontsize=6, ncols=2, loc='lower left', framealpha=0.8)

    return paint


def classes_in(inference: Inference, min_score: float = 0.3) -> list[int]:
    """The classes that are drawn, at most the eight that cover most.

    Args:
        inference: of a segmentor or a detector.
        min_score: least score of an instance to be drawn.
    """
    labels = inference.labels
    if labels is None:
        labels = np.array([one.label for one in inference.instances(min_score) or []], int)
    covered = np.bincount(labels[labels < len(inference.classes)])
    return [int(i) for i in np.argsort(-covered, kind='stable')[:8] if covered[i]]


def decision_pictures(inference: Inference) -> list[tuple[str, np.ndarray]]:
    """Title and (h, w, 3) uint8 RGB of each predictor's choice, then of the tiles', if any.

    What takes the fast path is darkened.
    """
    image = np.ascontiguousarray(inference.picture.image[..., ::-1])
    named = [(f'predictor {i}', choice) for i, choice in enumerate(inference.choices)]
    if inference.tiles is not None:
        named.append(('tiles', inference.tiles))
    return [
        (
            f'{name}: {choice.fraction:.0%} on the slow path',
            dim(image, choice.on_picture(choice.kept, image.shape[:2])),
        )
        for name, choice in named
    ]


def heat_colours(most: int) -> np.ndarray:
    """(most + 1, 3) uint8 RGB: the heat map's colours of 0, 1 ... ``most`` predictors."""
    return mpl.colormaps[HEAT](np.linspace(0, 1, most + 1), bytes=True)[:, :3]


def _choices(inference: Inference) -> list[Panel]:
    panels = [(title, _show(picture)) for title, picture in decision_pictures(inference)]
    if len(inference.choices) > 1:
        panels.insert(len(inference.choices), (HEAT_TITLE, _heat(inference)))
    return panels


def _heat(inference: Inference) -> Callable[[Axes], None]:
    counts, most = kept_counts(inference), len(inference.choices)

    def paint(axes: Axes) -> None:
        shown = axes.imshow(counts, cmap=HEAT, vmin=0, vmax=most, interpolation='nearest')
        bar = axes.figure.colorbar(shown, ax=axes, fraction=0.046, ticks=range(most + 1))
        bar.ax.tick_params(labelsize=7)

    return paint


def _histogram(names: Sequence[str], choices: Sequence[Choice]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        axes.set_axis_on()
        styles = ('-', '--', ':', '-.')
        for number, (name, choice) in enumerate(zip(names, choices, strict=True)):
            axes.hist(
                choice.scores[choice.real],
                bins=np.linspace(0, 1, 26),
                histtype='step',
                linestyle=styles[number % len(styles)],
                color=f'C{number}',
                density=True,
                label=name,
            )
        axes.set_xlim(0, 1)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)

    return paint
