"""One checkpoint at many keep ratios: what each reaches, and what it costs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmdyn.analysis.complexity import count_executed
from mmdyn.analysis.evaluating import Advance, ModelTester, metric_name
from mmdyn.analysis.images import Batch
from mmdyn.analysis.latency import Latency, Spread, measure_latency, speedup
from mmdyn.analysis.loading import LoadedModel
from mmdyn.analysis.measuring import restored
from mmdyn.analysis.model_benchmark import DENSE, Line, lines_of
from mmdyn.models.deciding import tile_part
from mmdyn.sparsity import Policy, ThresholdPolicy
from mmdyn.whole_files import write_text

TWIN = 'dense twin'


@dataclass(frozen=True)
class Point:
    """What a line reached and cost.

    Attributes:
        line: which model, ratios and policy.
        metric: name of what it is judged by, higher is better.
        value: of that metric; None = it was not evaluated.
        gmacs: 10⁹ multiply-adds of an image, the mean over those that were timed.
        latency: milliseconds of an image.
        speedup: how many times as fast as dense.
        metrics: all that was measured.
        note: for people, for example that it was chosen.
    """

    line: Line
    metric: str
    value: float | None
    gmacs: float
    latency: Latency
    speedup: Spread
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ''

    def as_json(self) -> dict[str, Any]:
        """The point as JSON and CSV can hold it."""
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


def lines_to_sweep(
    loaded: LoadedModel,
    ladders: Sequence[tuple[float, ...]],
    *,
    tile_ratios: Sequence[float] = (),
    policies: Mapping[str, Policy] | None = None,
    random: bool = True,
    seed: int = 0,
) -> list[Line]:
    """Every combination of ratios and policies, the dense model first.

    Args:
        loaded: the model.
        ladders: keep ratios, one per predictor each; empty for a dense backbone.
        tile_ratios: of a head or neck that goes by tiles; empty = the config's.
        policies: by name, more ways to choose than the learned and the random one.
        random: whether the random choice takes part.
        seed: of the random choice.

    Raises:
        TypeError, ValueError: if something does not fit the model.
    """
    tiles = tile_part(loaded.model)
    if tile_ratios and tiles is None:
        raise ValueError(
            f'tile ratios are for a head or neck that goes by tiles, {loaded.name} has none: '
            'leave them out'
        )
    found: dict[str, Line] = {}
    with restored(loaded.model):
        for tile_ratio in tile_ratios or (None,):
            if tile_ratio is not None:
                tiles.set_tile_ratio(tile_ratio)
            lines = lines_of(loaded, ladders, random=random, seed=seed)
            for name, policy in (policies or {}).items():
                lines += _lines_at(loaded, ladders, name, policy)
            kept = [line for line in lines if line.kind == DENSE or not is_dense(line)]
            found |= {line.name: line for line in kept}
    return list(found.values())


def _lines_at(
    loaded: LoadedModel, ladders: Sequence[tuple[float, ...]], name: str, policy: Policy
) -> list[Line]:
    """The lines of another policy than the learned and the random one."""
    alike = isinstance(policy, ThresholdPolicy)  # keep ratios below 1 have no say
    ladders = [ladder for ladder in ladders if min(ladder) < 1][:1] if alike else ladders
    lines = lines_of(loaded, ladders, policy=policy, random=False)
    title = name if alike else ''
    return [replace(line, kind=name, title=title) for line in lines if line.kind != DENSE]


def is_dense(line: Line) -> bool:
    """Whether a line of a sparse model leaves nothing to choose."""
    tiles = tile_part(line.model)
    return all(ratio == 1 for ratio in line.keep_ratios) and (
        tiles is None or line.tile_ratio == tiles.highest_ratio
    )


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
) -> dict[str, float]:
    """10⁹ multiply-adds of each line by name, the mean over batches of one image.

    Args:
        lines: by different names.
        part: one of :data:`mmdyn.analysis.model_benchmark.PARTS`.
        batches: at least one.
        advance: called after every batch of every line.
    """
    found = {}
    for line in lines:
        run = line.runner(part, 'fp32')
        total = 0
        for batch in batches:
            total += count_executed(lambda run=run, batch=batch: run(batch))[0].total
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
        part: one of :data:`mmdyn.analysis.model_benchmark.PARTS`.
        batches: of one image each, taken in turns.
        rounds: timed calls of each, at least: each image has as many.
        warmup: calls of each before that.
        seed: of the order in each round.
        advance: called after every call.
    """
    runs: dict[str, Callable[[Batch], Any]] = {
        line.name: line.runner(part, 'fp32') for line in lines
    }
    rounds = -(-rounds // len(batches)) * len(batches)
    return measure_latency(runs, batches, rounds=rounds, warmup=warmup, seed=seed, on_call=advance)


def points_of(
    lines: Sequence[Line],
    metrics: Mapping[str, Mapping[str, float]],
    gmacs: Mapping[str, float],
    latencies: Mapping[str, Latency],
    metric: str | None = None,
) -> list[Point]:
    """Put together what was measured of each line; one of them is dense, the reference.

    Args:
        lines: by different names.
        metrics: by these names; a line without was not evaluated.
        gmacs, latencies: by these names.
        metric: see :func:`mmdyn.analysis.evaluating.metric_name`.

    Raises:
        ValueError: if no line measured it.
    """
    dense = next(latencies[line.name] for line in lines if line.kind == DENSE)
    if any(metrics.values()):
        metric = metric_name({name for found in metrics.values() for name in found}, metric)
    points = []
    for line in lines:
        found, latency = metrics.get(line.name, {}), latencies[line.name]
        value, note = found.get(metric), ''
        if found and value is None and metric.startswith('coco/'):
            value, note = 0.0, 'found nothing'  # mmdet then measures nothing
        gain = speedup(latency, dense)
        points.append(
            Point(line, metric or '', value, gmacs[line.name], latency, gain, found, note)
        )
    return points


def pareto(points: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """The points that no other one beats: none is as cheap and better, or cheaper and as good.

    Args:
        points: any; random choices and dense twins take part like all others.
        cost: what is to be low.

    Returns:
        From the cheapest to the best.
    """
    best, front = float('-inf'), []
    evaluated = [point for point in points if point.value is not None]
    for point in sorted(evaluated, key=lambda point: (cost(point), -point.value)):
        if point.value > best:
            best = point.value
            front.append(point)
    return front


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Write one line per point, ratios with blanks between them.

    Args:
        points: at least one.
        path: of the file.
    """
    rows = [point.as_json() for point in points]
    for row in rows:
        row |= row.pop('metrics')
        row['keep_ratios'] = ' '.join(f'{ratio:g}' for ratio in row['keep_ratios'])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def cells(point: Point) -> tuple[str, ...]:
    """A point as text: name, metric, GMACs, ms with quartiles, speed-up, note."""
    latency = point.latency
    digits = (
        3 if point.metric.startswith('coco/') else 2
    )  # mmdet's lie in [0, 1], mmseg's are per cent
    return (
        point.line.name,
        '-' if point.value is None else f'{point.value:.{digits}f}',
        f'{point.gmacs:.3f}',
        f'{latency.median:.1f} [{latency.lower:.1f}, {latency.upper:.1f}]',
        f'{point.speedup.median:.2f}x',
        point.note,
    )
