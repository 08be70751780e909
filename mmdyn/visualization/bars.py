"""Bar charts of measurements with their quartiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's colours, safe for colour-blind readers.
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442', '#000000')
_BAR_INCHES = 0.28


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: on the axis.
        kind: determines the colour; shown in the legend.
        value: its length.
        lower, upper: ends of its whisker.
        note: text behind it.
        aim: position of a target mark; None = no mark.
    """

    label: str
    kind: str
    value: float
    lower: float
    upper: float
    note: str = ''
    aim: float | None = None


def draw_bars(panels: Mapping[str, Sequence[Bar]], axis: str, title: str = '') -> Figure:
    """Draw horizontal bars in panels, one below the other.

    Args:
        panels: bars from top to bottom, by title.
        axis: meaning of the bars' length, with unit.
        title: of the figure.

    Returns:
        A figure, to be saved with ``savefig``.
    """
    bars = [bar for panel in panels.values() for bar in panel]
    kinds = list(dict.fromkeys(bar.kind for bar in bars))
    colours = {kind: COLOURS[index % len(COLOURS)] for index, kind in enumerate(kinds)}
    heights = [len(panel) + 1.6 for panel in panels.values()]
    figure = Figure(figsize=(8, _BAR_INCHES * sum(heights) + 1.2), layout='constrained')
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, (name, panel) in zip(grid[:, 0], panels.items(), strict=True):
        for place, bar in enumerate(panel):
            whisker = [[max(0.0, bar.value - bar.lower)], [max(0.0, bar.upper - bar.value)]]
            axes.barh(place, bar.value, xerr=whisker, color=colours[bar.kind], capsize=2)
            axes.annotate(
                bar.note, (bar.upper, place), (4, 0), textcoords='offset points', va='center'
            )
            if bar.aim is not None:
                axes.plot([bar.aim] * 2, [place - 0.42, place + 0.42], color='black', linewidth=2)
        axes.set_yticks(range(len(panel)), [bar.label for bar in panel])
        axes.set_ylim(len(panel) - 0.4, -0.6)
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.set_title(name, loc='left', fontsize='medium')
        axes.spines[['top', 'right']].set_visible(False)
    grid[-1, 0].set_xlabel(axis)
    handles = [Patch(color=colours[kind], label=kind) for kind in kinds]
    if any(bar.aim is not None for bar in bars):
        handles.append(Patch(color='black', label='aim'))
    figure.legend(handles=handles, loc='outside lower center', ncols=min(len(handles), 4))
    figure.suptitle(title)
    return figure
