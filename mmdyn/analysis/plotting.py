"""Plots of a metric over multiply-adds and time."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdyn.analysis.lines import DENSE, LEARNED, RANDOM, TWIN, Line
from mmdyn.analysis.rows import Row, pareto
from mmdyn.visualization.bars import COLOURS

# Different in shape as well as colour.
_LOOK = {
    DENSE: (COLOURS[7], 'D'),
    TWIN: (COLOURS[7], 's'),
    LEARNED: (COLOURS[0], 'o'),
    RANDOM: (COLOURS[1], 'X'),
}
_MORE = tuple(zip((COLOURS[2], COLOURS[3], COLOURS[5], COLOURS[4]), '^vP*', strict=True))


def draw_pareto(
    points: Sequence[Row],
    title: str = '',
    *,
    budget: tuple[str, float] | None = None,
    chosen: str | None = None,
) -> Figure:
    """Draw all evaluated points and the Pareto front.

    Args:
        points: with the same metric.
        budget: unit, ``'ms'`` or ``'GMACs'``, and limit, drawn as a line.
        chosen: name of a line to mark with a ring.
    """
    shown = [point for point in points if point.value is not None]
    figure = Figure(figsize=(10, 4.6), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, shown, 'GMACs', lambda point: point.gmacs, budget, chosen)
    _draw(right, shown, 'ms', lambda point: point.latency.median, budget, chosen)
    left.set_xlabel('10⁹ multiply-adds per image, as executed')
    right.set_xlabel('ms per image (median, quartiles)')
    left.set_ylabel(shown[0].metric + ('' if '/' in shown[0].metric else ' (%)'))
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(len(labels), 5))
    if not chosen and any(point.line.kind == LEARNED for point in shown):
        title += '\n(labels: the first keep ratio, or the fraction of tiles)'
    figure.suptitle(title)
    return figure


def _label(line: Line, chosen: str | None) -> str:
    """Label of a point: the ratios if chosen, else the first ratio of learned ones."""
    if line.name == chosen:
        return ', '.join(f'{ratio:g}' for ratio in line.keep_ratios)
    if chosen or line.kind != LEARNED:
        return ''
    return f'{line.keep_ratios[0] if line.keep_ratios else line.tile_ratio:g}'


def _draw(axes: Axes, points, unit, cost, budget, chosen) -> None:
    kinds = list(dict.fromkeys(point.line.kind for point in points))
    more = iter(_MORE * len(kinds))
    looks = {kind: _LOOK.get(kind) or next(more) for kind in kinds}
    models = list(dict.fromkeys(point.line.of for point in points))
    groups = list(dict.fromkeys((point.line.of, point.line.kind) for point in points))
    front = pareto(points, cost)
    axes.plot(
        [cost(point) for point in front],
        [point.value for point in front],
        color=COLOURS[4],
        linewidth=3,
        alpha=0.5,
        zorder=1,
        label='Pareto front',
    )
    for model, kind in groups:
        colour, marker = looks[kind]
        if len(models) > 1:  # colour by model, shape by kind
            colour = COLOURS[models.index(model) % len(COLOURS)]
        own = [point for point in points if (point.line.of, point.line.kind) == (model, kind)]
        x, y = [cost(point) for point in own], [point.value for point in own]
        name = f'{model}, {kind}' if model else kind
        if unit == 'ms':
            below = [max(0.0, p.latency.median - p.latency.lower) for p in own]
            above = [max(0.0, p.latency.upper - p.latency.median) for p in own]
            axes.errorbar(x, y, xerr=[below, above], fmt='none', ecolor=colour, alpha=0.4)
        axes.scatter(x, y, s=46, color=colour, marker=marker, zorder=3, label=name)
    for point in points:
        label = _label(point.line, chosen)
        if label:
            where = (cost(point), point.value)
            axes.annotate(label, where, (0, 7), textcoords='offset points', fontsize=8, ha='center')
        if point.line.name == chosen:
            axes.scatter(
                cost(point),
                point.value,
                s=190,
                facecolors='none',
                edgecolors=COLOURS[5],
                linewidths=2,
                zorder=4,
                label='chosen',
            )
    if budget is not None and budget[0] == unit:
        axes.axvline(
            budget[1], color=COLOURS[5], linestyle='--', label=f'budget, {budget[1]:g} {unit}'
        )
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(0.1)
    axes.grid(alpha=0.2)
