"""Page and plot of the results of gpu.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu_models import MODES, Row
from matplotlib.figure import Figure

from mmdyn.analysis.machine import describe
from mmdyn.analysis.measuring import memory_method
from mmdyn.analysis.tables import to_markdown
from mmdyn.visualization.bars import Bar, draw_bars

SPEED = ('backbone', 'head', 'segmentor')
HOSTS = ('mmseg', 'timm')
# From column heading to field and format.
COLUMNS = {
    "over the host's best": ('speedup_over_best', '{:.2f}x'),
    'realised': ('realised', '{:.2f}'),
    'time saved': ('time_saved', '{:.0%}'),
    'work saved': ('work_saved', '{:.0%}'),
    'GMACs': ('gmacs', '{:.2f}'),
}


def page(results: Mapping[str, Any]) -> str:
    """Format the results as Markdown."""
    machine, rows = results['machine'], results['rows']
    gpu = [f'{key} {machine[key]}' for key in ('driver', 'cuda', 'cudnn') if machine.get(key)]
    parts = [
        '# How fast is it on a GPU?\n',
        '`python benchmarks/gpu.py` ([how it is measured](../docs/benchmarks.md#on-a-gpu)). '
        "Milliseconds are medians of interleaved rounds; in brackets the speed-up over the host's "
        'dense model in the same mode. The columns after them are of the fastest mode. Peak memory '
        f'is of the eager model: {memory_method("cuda" if machine["gpu"] else "cpu")}.\n',
        f'{"; ".join([describe(machine, results["versions"]), *gpu])}.\n',
        *(
            ['**Tiny models on a CPU, a smoke test: these numbers mean nothing.**\n']
            * results['tiny']
        ),
    ]
    measured = [row for row in rows if 'failed' not in row]
    for title, groups in (('Speed', SPEED), ('A training step', ('training',))):
        lines = [line_of(modes) for modes in by_contender(measured, groups)]
        if lines:
            headings = ('', 'contender', *MODES, *COLUMNS, 'peak MiB')
            parts += [f'## {title}\n', to_markdown(headings, lines)]
    for group, title, fields in (
        ('parity', 'Largest deviation from the CPU in fp32', ('deviation',)),
        ('synchronisations', 'Synchronisations of a warm forward', ('count', 'places', 'error')),
    ):
        found = [row for row in measured if row['group'] == group]
        lines = [(*about(row), *(str(row.get(field, '')) for field in fields)) for row in found]
        if lines:
            parts += [f'## {title}\n', to_markdown(('', 'contender', *fields), lines)]
    missing = [
        ' '.join(['-', row['group'], *about(row), f'{row.get("mode", "")}: {row["failed"]}'])
        for row in rows
        if 'failed' in row
    ]
    missing += [f'- {what}: not within {results["seconds"]:g} s' for what in results['skipped']]
    if missing:
        parts += ['## Not measured\n', '\n'.join(missing) + '\n']
    return '\n'.join(parts)


def about(row: Row) -> tuple[str, str]:
    """Description of the comparison, and the contender of a row."""
    cell = f'{row["model"]} {row["size"]} batch {row["batch"]} {row["dtype"]}'
    return cell, row.get('contender', '')


def by_contender(rows: Sequence[Row], groups: Sequence[str]) -> Iterator[dict[str, Row]]:
    """Rows of each contender by mode, fastest first."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in sorted((row for row in rows if row['group'] in groups), key=lambda row: row['ms']):
        found.setdefault(about(row), {})[row['mode']] = row
    order = dict.fromkeys(about(row) for row in rows)
    return (found[key] for key in order if key in found)


def line_of(modes: Mapping[str, Row]) -> tuple[str, ...]:
    """Table row of a contender; a dash where there is no value."""
    best = next(iter(modes.values()))
    times = []
    for mode in MODES:
        row = modes.get(mode, {})
        over = f' ({row["speedup"]:.2f}x)' if 'speedup' in row else ''
        times.append(f'{row["ms"]:.2f}{over}' if row else '-')
    figures = [form.format(best[key]) if key in best else '-' for key, form in COLUMNS.values()]
    return *about(best), *times, *figures, str(modes.get('eager', {}).get('peak_mib', '-'))


def draw(results: Mapping[str, Any]) -> Figure:
    """Draw bf16 speed-ups over the host's dense model in the best modes; a panel per size."""
    rows = [row for row in results['rows'] if row['dtype'] == 'bf16' and 'failed' not in row]
    panels: dict[str, list[Bar]] = {}
    for modes in by_contender(rows, SPEED):
        best = next(iter(modes.values()))
        kind = best['contender']
        if 'speedup_over_best' not in best or kind == 'random' or kind.startswith(HOSTS):
            continue
        values = [best[f'speedup_over_best{end}'] for end in ('', '_lower', '_upper')]
        bar = Bar(f'{best["model"]} {kind}', kind, *values, f'{values[0]:.2f}x {best["mode"]}')
        panels.setdefault(f'{best["size"]}, batch {best["batch"]}', []).append(bar)
    title = "Speed-up over the host's dense model, each in its best mode (bf16)"
    return draw_bars(panels or {'nothing was measured': []}, 'times as fast', title)
