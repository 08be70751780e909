"""What lines reach and cost: one row each, measured together."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmdyn.analysis.evaluating import Advance, Evaluation, ModelTester, metric_name
from mmdyn.analysis.images import HostBatch
from mmdyn.analysis.lines import DENSE, LEARNED, STOCK, Line
from mmdyn.analysis.measuring import Latency, Measurement, Spread, measure
from mmdyn.whole_files import write_text

WARMUP = 2
"""Calls of each line before those that are timed."""


@dataclass(frozen=True)
class Row:
    """What a line reached and cost.

    Attributes:
        line: which model, ratios and policy.
        cost: of a batch.
        reference: what the line cost that the speed-up is over.
        metric: name of what it is judged by, higher is better; '' = it is not judged.
        value: of that metric; None = it was not evaluated.
        metrics: all that was measured.
        interval: of a mIoU, 95 %, over images; None = unknown.
        difference: of the value to the first line's, None for that one; with
            ``difference_interval`` of 95 %, over the same images.
        note: for people, for example that it was chosen.
    """

    line: Line
    cost: Measurement
    reference: Measurement
    metric: str = ''
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    note: str = ''

    @property
    def gmacs(self) -> float:
        """10⁹ multiply-adds of a batch."""
        return self.cost.macs / 1e9

    @property
    def latency(self) -> Latency:
        """Milliseconds of a batch."""
        return self.cost.latency

    @property
    def speedup(self) -> Spread:
        """How many times as fast as the reference it is."""
        return self.cost.speedup(self.reference)

    def as_json(self) -> dict[str, Any]:
        """The row as JSON can hold it; without metrics if it is not judged."""
        line = self.line
        found: dict[str, Any] = dict(
            name=line.name,
            model=line.of,
            kind=line.kind,
            policy=None if line.policy is None else type(line.policy).__name__,
            keep_ratios=list(line.keep_ratios),
            tile_ratio=line.tile_ratio,
            **self.cost.as_json(self.reference),
        )
        if self.metric:
            ends = (self.interval, self.difference_interval)
            found |= dict(metric=self.metric, value=_finite(self.value), note=self.note)
            found |= dict(difference=_finite(self.difference))
            for name, pair in zip(('interval', 'difference_interval'), ends, strict=True):
                found[name] = None if pair is None else [round(end, 4) for end in pair]
            found['metrics'] = {name: _finite(value) for name, value in self.metrics.items()}
        return found


def _finite(value: float | None) -> float | None:
    """Rounded; None for what JSON has no number for."""
    return round(float(value), 4) if value is not None and math.isfinite(value) else None


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's JSON with its medians in place of spreads, quartiles beside them.

    ``ms=dict(median=…)`` becomes ``ms=…, ms_lower=…, ms_upper=…``.
    """
    found = dict(row)
    for key, value in row.items():
        if isinstance(value, Mapping) and 'median' in value:
            found[key] = value['median']
            found |= {f'{key}_{end}': value[end] for end in ('lower', 'upper')}
    return found


def brief(row: Row, seed: int) -> dict[str, Any]:
    """What demo and benchmarks write: mIoU in per cent, 10⁹ multiply-adds, median ms."""
    kind = LEARNED if row.line.kind == DENSE else row.line.kind
    return dict(
        model=row.line.of,
        policy='none' if row.line.policy is None else kind,
        keep_ratios=row.line.keep_ratios,
        seed=seed,
        miou=round(float(row.value), 2),
        backbone_gflops=round(row.gmacs, 4),
        latency_ms=round(row.latency.median, 3),
        speedup=round(row.speedup.median, 3),
    )


def rows_of(
    lines: Sequence[Line],
    costs: Mapping[str, Measurement],
    evaluations: Mapping[str, Evaluation] | None = None,
    metric: str | None = None,
) -> list[Row]:
    """Put together what was measured of each line.

    Args:
        lines: by different names; the first is the reference of speed-up and difference.
        costs: by these names.
        evaluations: by these names; a line without was not evaluated.
        metric: see :func:`mmdyn.analysis.evaluating.metric_name`.

    Raises:
        ValueError: if no line measured it.
    """
    evaluations = evaluations or {}
    measured = {name for found in evaluations.values() for name in found.metrics}
    metric = metric_name(measured, metric) if measured else ''
    first, rows = evaluations.get(lines[0].name), []
    for line in lines:
        row = Row(line, costs[line.name], costs[lines[0].name], metric)
        found = evaluations.get(line.name)
        rows.append(row if found is None else _judged(row, found, first))
    return rows


def _judged(row: Row, found: Evaluation, first: Evaluation | None) -> Row:
    """The row with its metric, and what that is beside the first line's."""
    value, note = found.metrics.get(row.metric), row.note
    if value is None and row.metric.startswith('coco/'):
        value, note = 0.0, 'found nothing'  # mmdet then measures nothing
    row = replace(row, value=value, metrics=found.metrics, note=note)
    of_areas = row.metric == 'mIoU'
    if of_areas:
        row = replace(row, interval=found.interval())
    if first in (None, found) or value is None or row.metric not in first.metrics:
        return row
    ends = found.interval(first) if of_areas else None
    return replace(row, difference=value - first.metrics[row.metric], difference_interval=ends)


def measure_lines(
    lines: Sequence[Line],
    part: str,
    batches: Sequence[HostBatch],
    *,
    rounds: int,
    dtype: str = 'fp32',
    memory: bool = False,
    **settings: Any,
) -> dict[str, Measurement]:
    """Count and time lines against each other, each batch as often as the others.

    Args:
        lines: by different names.
        part, dtype: see :meth:`mmdyn.analysis.lines.Line.runner`.
        batches, rounds, memory, settings: see :func:`mmdyn.analysis.measuring.measure`.
    """
    settings |= dict(rounds=-(-rounds // len(batches)) * len(batches), warmup=WARMUP, memory=memory)
    runs = {line.name: line.runner(part, dtype) for line in lines}
    return measure(runs, batches, device=batches[0].inputs.device, **settings)


def steps_of(lines: int, batches: int, rounds: int, images: int) -> int:
    """How often :func:`sweep` calls ``advance``, about."""
    return lines * (batches + rounds + WARMUP + images)


def sweep(
    lines: Sequence[Line],
    testers: Mapping[int, ModelTester],
    part: str,
    batches: Sequence[HostBatch],
    *,
    rounds: int,
    seed: int = 0,
    metric: str | None = None,
    advance: Advance = lambda: None,
) -> Iterator[list[Row]]:
    """Count, time and evaluate every line.

    Args:
        lines, part, batches, rounds, seed, advance: see :func:`measure_lines`.
        testers: of each model, by its ``id``.
        metric: see :func:`mmdyn.analysis.evaluating.metric_name`.

    Yields:
        All rows, after each evaluation: the first time only one has a value.
    """
    costs = measure_lines(lines, part, batches, rounds=rounds, seed=seed, on_call=advance)
    found: dict[str, Evaluation] = {}
    for line in lines:
        line.apply()
        found[line.name] = testers[id(line.model)].evaluate(advance)
        yield rows_of(lines, costs, found, metric)


def pareto(rows: Sequence[Row], cost: Callable[[Row], float]) -> list[Row]:
    """The rows that no other one beats: none is as cheap and better, or cheaper and as good.

    From the cheapest to the best; random choices and dense twins take part like all others.
    """
    best, front = float('-inf'), []
    evaluated = [row for row in rows if row.value is not None]
    for row in sorted(evaluated, key=lambda row: (cost(row), -row.value)):
        if row.value > best:
            best = row.value
            front.append(row)
    return front


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line per row, lists with blanks between their values."""
    shown = [flat(row.as_json()) for row in rows]
    for cells in shown:
        cells |= cells.pop('metrics', {})
        for key, value in cells.items():
            if isinstance(value, list):
                cells[key] = ' '.join(f'{one:g}' for one in value)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for cells in shown for key in cells)))
    writer.writeheader()
    writer.writerows(shown)
    write_text(path, text.getvalue())


def table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and cells of rows as text, for ``mmdyn.analysis.tables``.

    Speed-ups are over the first row. What no row has gets no column.
    """
    found = list(map(_cells, rows))
    headings = [key for key in found[0] if any(cells[key] not in ('', '-') for cells in found)]
    return tuple(headings), [tuple(cells[key] for key in headings) for cells in found]


def _cells(row: Row) -> dict[str, str]:
    # mmdet's metrics lie in [0, 1], mmseg's are per cent.
    digits = 3 if row.metric.startswith('coco/') else 2

    def number(value: float | None, ends: tuple[float, float] | None, sign: str = '') -> str:
        if value is None:
            return '-'
        low, high = ends or (None, None)
        interval = '' if ends is None else f' [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]'
        return f'{value:{sign}.{digits}f}{interval}'

    saves = row.line.kind not in (DENSE, STOCK) and not row.metric
    peak = row.cost.peak_bytes
    return {
        'model': row.line.name,
        row.metric: number(row.value, row.interval),
        'difference': number(row.difference, row.difference_interval, '+'),
        'GMACs': f'{row.gmacs:.3f}',
        'ms': row.latency.text('{:.1f}'),
        'speed-up': f'{row.speedup.median:.2f}x' if row.metric else row.speedup.text('{:.2f}'),
        # Without a saving there is nothing to realise.
        'realised': f'{row.cost.realised(row.reference).median:.2f}' if saves else '-',
        'peak MiB': '-' if peak is None else f'{peak / 2**20:.1f}',
        'note': row.note,
    }
