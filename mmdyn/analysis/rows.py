"""Results of lines: one row each, measured together."""

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
"""Untimed calls of each line before the timed ones."""


@dataclass(frozen=True)
class Row:
    """Metric and cost of a line.

    Attributes:
        line: model, ratios and policy.
        cost: per batch.
        reference: cost of the line that speed-ups refer to.
        metric: name of the metric (higher is better); '' = not evaluated.
        value: of the metric; None = not evaluated.
        metrics: all metrics.
        interval: 95 % interval of a mIoU over images; None = unknown.
        difference: of the value to the first line's, None for that one; with
            ``difference_interval`` of 95 %, over the same images.
        note: for example that the line was chosen.
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
        """10⁹ multiply-adds per batch."""
        return self.cost.macs / 1e9

    @property
    def latency(self) -> Latency:
        """Milliseconds per batch."""
        return self.cost.latency

    @property
    def speedup(self) -> Spread:
        """Speed-up over the reference."""
        return self.cost.speedup(self.reference)

    def as_json(self) -> dict[str, Any]:
        """Convert to a dict for JSON; without metrics if not evaluated."""
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
    """Round a number; None for non-finite ones, which JSON lacks."""
    return round(float(value), 4) if value is not None and math.isfinite(value) else None


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten spreads in a row's JSON to median and quartiles.

    ``ms=dict(median=…)`` becomes ``ms=…, ms_lower=…, ms_upper=…``.
    """
    found = dict(row)
    for key, value in row.items():
        if isinstance(value, Mapping) and 'median' in value:
            found[key] = value['median']
            found |= {f'{key}_{end}': value[end] for end in ('lower', 'upper')}
    return found


def brief(row: Row, seed: int) -> dict[str, Any]:
    """Row for demo and benchmarks: mIoU in per cent, 10⁹ multiply-adds, median ms."""
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
    """Combine the measurements of each line.

    Args:
        lines: with unique names; the first is the reference of speed-up and difference.
        costs: by name.
        evaluations: by name; may lack lines.
        metric: see :func:`mmdyn.analysis.evaluating.metric_name`.

    Raises:
        ValueError: if no line measured the metric.
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
    """Add the metric to a row, with its difference to the first line's."""
    value, note = found.metrics.get(row.metric), row.note
    if value is None and row.metric.startswith('coco/'):
        value, note = 0.0, 'found nothing'  # mmdet then reports no metric
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
    """Count and time lines against each other, using all batches equally often.

    Args:
        lines: with unique names.
        part, dtype: see :meth:`mmdyn.analysis.lines.Line.runner`.
        batches, rounds, memory, settings: see :func:`mmdyn.analysis.measuring.measure`.
    """
    settings |= dict(rounds=-(-rounds // len(batches)) * len(batches), warmup=WARMUP, memory=memory)
    runs = {line.name: line.runner(part, dtype) for line in lines}
    return measure(runs, batches, device=batches[0].inputs.device, **settings)


def steps_of(lines: int, batches: int, rounds: int, images: int) -> int:
    """Approximate number of calls of ``advance`` by :func:`sweep`."""
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
        All rows, after each evaluation; the first time only one has a value.
    """
    costs = measure_lines(lines, part, batches, rounds=rounds, seed=seed, on_call=advance)
    found: dict[str, Evaluation] = {}
    for line in lines:
        line.apply()
        found[line.name] = testers[id(line.model)].evaluate(advance)
        yield rows_of(lines, costs, found, metric)


def pareto(rows: Sequence[Row], cost: Callable[[Row], float]) -> list[Row]:
    """Pareto front: the rows for which no other is as cheap and better, or cheaper and as good.

    From the cheapest to the best, over all kinds of lines.
    """
    best, front = float('-inf'), []
    evaluated = [row for row in rows if row.value is not None]
    for row in sorted(evaluated, key=lambda row: (cost(row), -row.value)):
        if row.value > best:
            best = row.value
            front.append(row)
    return front


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line per row; lists are separated by spaces."""
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

    Speed-ups are over the first row. Empty columns are omitted.
    """
    found = list(map(_cells, rows))
    headings = [key for key in found[0] if any(cells[key] not in ('', '-') for cells in found)]
    return tuple(headings), [tuple(cells[key] for key in headings) for cells in found]


def _cells(row: Row) -> dict[str, str]:
    # mmdet's metrics are in [0, 1], mmseg's in per cent.
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
        # Only lines that save work realise a saving.
        'realised': f'{row.cost.realised(row.reference).median:.2f}' if saves else '-',
        'peak MiB': '-' if peak is None else f'{peak / 2**20:.1f}',
        'note': row.note,
    }
