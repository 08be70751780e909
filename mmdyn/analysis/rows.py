"""What lines reach and cost: one row each, measured together."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdyn.analysis.complexity import count_executed
from mmdyn.analysis.evaluating import Advance, ModelTester, metric_name
from mmdyn.analysis.images import Batch
from mmdyn.analysis.latency import Latency, Spread, measure_latency, speedup
from mmdyn.analysis.lines import Line
from mmdyn.analysis.tables import with_quartiles
from mmdyn.whole_files import write_text


@dataclass(frozen=True)
class Row:
    """What a line reached and cost.

    Attributes:
        line: which model, ratios and policy.
        gmacs: 10⁹ multiply-adds of a batch, the mean over those that were counted.
        latency: milliseconds of a batch.
        speedup: how many times as fast as the first line.
        metric: name of what it is judged by, higher is better.
        value: of that metric; None = it was not evaluated.
        metrics: all that was measured.
        note: for people, for example that it was chosen.
    """

    line: Line
    gmacs: float
    latency: Latency
    speedup: Spread
    metric: str = ''
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ''

    def as_json(self) -> dict[str, Any]:
        """The row as JSON and CSV can hold it."""
        line = self.line
        return dict(
            name=line.name,
            kind=line.kind,
            policy=None if line.policy is None else type(line.policy).__name__,
            keep_ratios=list(line.keep_ratios),
            tile_ratio=line.tile_ratio,
            metric=self.metric,
            value=_finite(self.value),
            gmacs=round(self.gmacs, 6),
            ms=round(self.latency.median, 3),
            ms_lower=round(self.latency.lower, 3),
            ms_upper=round(self.latency.upper, 3),
            speedup=round(self.speedup.median, 3),
            note=self.note,
            metrics={name: _finite(value) for name, value in self.metrics.items()},
        )


def _finite(value: float | None) -> float | None:
    """Rounded; None for what JSON has no number for."""
    return round(float(value), 4) if value is not None and math.isfinite(value) else None


def evaluate_lines(
    lines: Sequence[Line],
    testers: Mapping[int, ModelTester],
    advance: Advance = lambda: None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Evaluate every line on its model's test set, one after the other.

    Args:
        lines: by different names.
        testers: of each model, by its ``id``.
        advance: called after every batch.

    Yields:
        A line's name, and its metrics.
    """
    for line in lines:
        line.apply()
        yield line.name, testers[id(line.model)].evaluate(advance)


def count_lines(
    lines: Iterable[Line],
    part: str,
    batches: Sequence[Batch],
    advance: Advance = lambda: None,
    dtype: str = 'fp32',
) -> dict[str, float]:
    """10⁹ multiply-adds of each line by name, the mean over batches.

    Args:
        lines: by different names.
        part: one of :data:`mmdyn.analysis.lines.PARTS`.
        batches: at least one.
        advance: called after every batch of every line.
        dtype: a key of :data:`mmdyn.analysis.measuring.DTYPES`.

    Raises:
        ValueError: if a model does not run in a half precision.
    """
    found = {}
    for line in lines:
        run = line.runner(part, dtype)
        total = 0
        for batch in batches:
            try:
                total += count_executed(lambda run=run, batch=batch: run(batch))[0].total
            except RuntimeError as error:
                if dtype == 'fp32':
                    raise
                # Operators outside torch, such as a detector's NMS, need not have it.
                raise ValueError(
                    f'the {part} model does not run in {dtype} here ({error}): measure the '
                    'backbone alone, or fp32'
                ) from error
            advance()
        found[line.name] = total / len(batches) / 1e9
    return found


def one_of_each_size(batches: Sequence[Batch]) -> list[tuple[Batch, float]]:
    """The first batch of each size of image, and the fraction of the batches that it stands for.

    Args:
        batches: at least one.
    """
    sizes: dict[tuple[int, ...], list[Batch]] = {}
    for batch in batches:
        sizes.setdefault(tuple(batch.inputs.shape), []).append(batch)
    return [(same[0], len(same) / len(batches)) for same in sizes.values()]


def time_lines(
    lines: Sequence[Line],
    part: str,
    batches: Sequence[Batch],
    *,
    rounds: int,
    warmup: int = 2,
    seed: int = 0,
    advance: Advance = lambda: None,
) -> dict[str, Latency]:
    """Time lines against each other; see :func:`mmdyn.analysis.measure_latency`.

    Args:
        lines: by different names.
        part: one of :data:`mmdyn.analysis.lines.PARTS`.
        batches: of one image each, taken in turns.
        rounds: timed calls of each, at least: each image has as many.
        warmup: calls of each before that.
        seed: of the order in each round.
        advance: called after every call.
    """
    runs: dict[str, Callable[[Batch], Any]] = {line.name: line.runner(part) for line in lines}
    rounds = -(-rounds // len(batches)) * len(batches)
    return measure_latency(runs, batches, rounds=rounds, warmup=warmup, seed=seed, on_call=advance)


def rows_of(
    lines: Sequence[Line],
    metrics: Mapping[str, Mapping[str, float]],
    gmacs: Mapping[str, float],
    latencies: Mapping[str, Latency],
    metric: str | None = None,
) -> list[Row]:
    """Put together what was measured of each line.

    Args:
        lines: by different names; the first is the reference of the speed-up.
        metrics: by these names; a line without was not evaluated.
        gmacs, latencies: by these names.
        metric: see :func:`mmdyn.analysis.evaluating.metric_name`.

    Raises:
        ValueError: if no line measured it.
    """
    reference = latencies[lines[0].name]
    if any(metrics.values()):
        metric = metric_name({name for found in metrics.values() for name in found}, metric)
    rows = []
    for line in lines:
        found, latency = metrics.get(line.name, {}), latencies[line.name]
        value, note = found.get(metric), ''
        if found and value is None and metric.startswith('coco/'):
            value, note = 0.0, 'found nothing'  # mmdet then measures nothing
        gain = speedup(latency, reference)
        rows.append(Row(line, gmacs[line.name], latency, gain, metric or '', value, found, note))
    return rows


def pareto(rows: Sequence[Row], cost: Callable[[Row], float]) -> list[Row]:
    """The rows that no other one beats: none is as cheap and better, or cheaper and as good.

    Args:
        rows: any; random choices and dense twins take part like all others.
        cost: what is to be low.

    Returns:
        From the cheapest to the best.
    """
    best, front = float('-inf'), []
    evaluated = [row for row in rows if row.value is not None]
    for row in sorted(evaluated, key=lambda row: (cost(row), -row.value)):
        if row.value > best:
            best = row.value
            front.append(row)
    return front


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line per row, ratios with blanks between them.

    Args:
        rows: at least one.
        path: of the file.
    """
    shown = [row.as_json() for row in rows]
    for cells in shown:
        cells |= cells.pop('metrics')
        cells['keep_ratios'] = ' '.join(f'{ratio:g}' for ratio in cells['keep_ratios'])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for cells in shown for key in cells)))
    writer.writeheader()
    writer.writerows(shown)
    write_text(path, text.getvalue())


def cells(row: Row) -> tuple[str, ...]:
    """A row as text: name, metric, GMACs, ms with quartiles, speed-up, note."""
    # mmdet's metrics lie in [0, 1], mmseg's are per cent.
    digits = 3 if row.metric.startswith('coco/') else 2
    return (
        row.line.name,
        '-' if row.value is None else f'{row.value:.{digits}f}',
        f'{row.gmacs:.3f}',
        with_quartiles(vars(row.latency), '{:.1f}'),
        f'{row.speedup.median:.2f}x',
        row.note,
    )
