"""Page and plots of benchmarks/choice.py, from choice.json and the trained models."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from choice_recipes import RECIPES
from choice_training import TASKS, Laboratory, Unit
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tile_pictures import draw_rows

from mmdyn.analysis.tables import to_markdown
from mmdyn.apis import DynamicInferencer
from mmdyn.visualization.bars import COLOURS
from mmdyn.visualization.inference import dim, kept_counts
from mmdyn.whole_files import write_figure, write_text

NAMES = {
    'miou': 'mIoU',
    'boundary_f': 'boundary F',
    'mask_ap': 'mask AP',
    'mask_ap_small': 'mask AP, small',
}
_LOOK = {
    'learned': (COLOURS[0], 'o'),
    'random': (COLOURS[1], 'X'),
    'static': (COLOURS[2], 's'),
    'oracle': (COLOURS[3], '^'),
    'inverted': (COLOURS[4], 'v'),
    'oracle in test': (COLOURS[5], '<'),
    'dense longer': ('0.3', 'D'),
    'dense': ('0.6', 'D'),
}


def write_report(out: Path, result: Mapping[str, Any], command: str) -> str:
    """Write choice.md and choice.png; returns the page.

    Args:
        out: the folder.
        result: of choice.json.
        command: that gave it.
    """
    parts = [_introduction(result, command)]
    for task in dict.fromkeys(row['task'] for row in result['rows']):
        rows, compared, times = (
            [one for one in result[key] if one['task'] == task]
            for key in ('rows', 'differences', 'times')
        )
        metrics = TASKS[task].metrics
        parts += [f'## {task}\n', _values(rows, metrics), _differences(compared, metrics)]
        if times:
            parts.append(_times(times))
        if any(one['recipe'] for one in compared):
            parts += ['### Other recipes\n', _recipes(compared, metrics)]
    page = '\n'.join(parts)
    write_text(out / 'choice.md', page)
    if result['times']:
        write_figure(out / 'choice.png', draw_metrics(result), dpi=100)
    return page


def _introduction(result: Mapping[str, Any], command: str) -> str:
    machine = result['machine']
    text = common.paragraph(
        f'`{command}` on {machine["cpu"]}, {machine["threads"]} thread(s). Every sparse model is '
        'fine-tuned from the dense one of its seed, with the same budget; *dense longer* is that '
        'dense model, trained on as long. *Oracle*: the labels choose the rarest classes and what '
        'is near them. *Static*: the same locations in every picture. *Inverted*: the learned '
        'model keeps its lowest scores. Values are means ± standard deviations over seeds; '
        'intervals (95 %) are of paired differences on the seeds that have both, bootstrapped over '
        'validation images and seeds: with three seeds they are still somewhat too narrow, and of '
        'one seed they do not cover another training. Milliseconds per picture at batch 1, end to '
        'end: medians of all models in turns; speed-up: the median over rounds of the ratio to '
        "the host's dense model. That at keep ratios of 1 does not come from sparsity. "
        'Boundary F has a tolerance of 0.75 % of the diagonal.'
    )
    return f'# What is a learned choice worth?\n\n{text}\n'


def _ladder(ladder: Sequence[float]) -> str:
    return ', '.join(f'{ratio:g}' for ratio in ladder) or '-'


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple, list[Mapping[str, Any]]]:
    """Rows by recipe, ladder and method."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row['recipe'], tuple(row['ladder']), row['method']), []).append(row)
    return groups


def _values(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    lines = []
    for (recipe, ladder, method), group in grouped(rows).items():
        if not recipe:
            values = (common.spread([row[metric] for row in group]) for metric in metrics)
            lines.append((method, _ladder(ladder), str(len(group)), *values))
    headings = ('choice', 'keep ratios', 'seeds', *(NAMES[metric] for metric in metrics))
    return to_markdown(headings, lines)


def _times(times: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        (
            f"{time['model']}, the host's" if not time['ladder'] else time['model'],
            _ladder(time['ladder']),
            f'{time["gmacs"]:.3f}',
            f'{time["ms"]:.1f}',
            f'{time["speedup"]:.2f}x',
        )
        for time in times
    ]
    return to_markdown(('model', 'keep ratios', 'GMACs', 'ms', 'speed-up'), lines)


def _differences(compared: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    lines: dict[tuple, list[str]] = {}
    for one in compared:
        if not one['recipe']:
            key = (f'{one["first"]} - {one["second"]}', _ladder(one['ladder']))
            lines.setdefault((*key, str(len(one['each']))), []).append(_interval(one))
    headings = ('difference', 'keep ratios', 'seeds', *(NAMES[metric] for metric in metrics))
    return to_markdown(headings, [(*key, *cells) for key, cells in lines.items()])


def _interval(one: Mapping[str, Any]) -> str:
    return f'{one["difference"]:+.2f} [{one["low"]:+.2f}, {one["high"]:+.2f}]'


def _recipes(compared: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    lines: dict[tuple, list[str]] = {}
    for one in compared:
        if one['recipe']:
            against = "the config's" if one['first'] == one['second'] else one['second']
            key = (RECIPES[one['recipe']].text, f'{one["first"]} - {against}')
            key += (_ladder(one['ladder']), str(len(one['each'])))
            lines.setdefault(key, []).append(_interval(one))
    headings = ('recipe', 'difference', 'keep ratios', 'seeds')
    headings += tuple(NAMES[metric] for metric in metrics)
    return to_markdown(headings, [(*key, *cells) for key, cells in lines.items()])


def draw_metrics(result: Mapping[str, Any]) -> Figure:
    """Both metrics of every task over the measured time."""
    tasks = list(dict.fromkeys(time['task'] for time in result['times']))
    figure = Figure(figsize=(5 * len(tasks), 7.5), layout='constrained')
    axes = figure.subplots(2, len(tasks), squeeze=False, sharex='col')
    for column, task in enumerate(tasks):
        for row, metric in enumerate(TASKS[task].metrics):
            _draw(axes[row, column], task, metric, result)
        axes[0, column].set_title(task)
        axes[1, column].set_xlabel('ms per picture (median)')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=len(labels))
    return figure


def _draw(axes: Axes, task: str, metric: str, result: Mapping[str, Any]) -> None:
    ms = {tuple(t['ladder']): t['ms'] for t in result['times'] if t['task'] == task}
    rows = [row for row in result['rows'] if row['task'] == task and not row['recipe']]
    for method, (colour, marker) in _LOOK.items():
        points = sorted(
            (ms[ladder], np.mean([row[metric] for row in group]), _sem(group, metric))
            for (_, ladder, name), group in grouped(rows).items()
            if name == method and ladder in ms
        )
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, error, color=colour, marker=marker, label=method, capsize=3)
    axes.set_ylabel(f'{NAMES[metric]} (%)')
    axes.grid(alpha=0.3)


def _sem(group: Sequence[Mapping[str, Any]], metric: str) -> float:
    """Standard error of the mean over seeds; 0 for a single one."""
    values = [row[metric] for row in group]
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def draw_choices(
    laboratory: Laboratory,
    pictures: Sequence[tuple[str, str]],
    seed: int,
    ladders: Sequence[tuple[float, ...]],
) -> Figure:
    """Where the learned models of a seed computed, on pictures of the validation sets.

    Args:
        laboratory: with the trained models.
        pictures: task and file each.
        seed: of the models.
        ladders: their keep ratios, from left to right in reverse.
    """
    return draw_rows([list(_panels(laboratory, *one, seed, ladders)) for one in pictures])


def _panels(
    laboratory: Laboratory, task: str, file: str, seed: int, ladders: Sequence[tuple[float, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    for index, ladder in enumerate(ladders[::-1]):
        unit = Unit(task, seed, 'learned', ladder)
        options = laboratory.options(unit)
        checkpoint = laboratory.checkpoint(unit)
        infer = DynamicInferencer(
            TASKS[task].sparse, checkpoint, device='cpu', cfg_options=options, prepare=False
        )
        found = next(infer(str(Path(laboratory.data_root(task), file))))
        if not index:
            yield task, found.picture.rgb
        kept = kept_counts(found) / len(found.choices)
        yield f'slow path at {_ladder(ladder)}', dim(found.picture.rgb, kept)
