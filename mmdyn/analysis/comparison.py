"""Trained segmentors, dense and sparse, in one run: mIoU, and what the backbone costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmdyn.analysis.evaluating import Advance, ModelTester
from mmdyn.analysis.lines import PARTS, Line
from mmdyn.analysis.rows import Row, count_lines, rows_of, time_lines

WARMUP = 3


def compare(
    models: Mapping[str, ModelTester],
    lines: Sequence[Line],
    *,
    seed: int,
    rounds: int = 30,
    advance: Advance = lambda: None,
) -> tuple[list[Row], list[tuple[Tensor, Tensor]]]:
    """Evaluate, count and time every line.

    Args:
        models: by the names that the lines are of; all on the same test set.
        lines: of :func:`mmdyn.analysis.lines.lines_to_compare`; the first is the reference of
            the speed-up.
        seed: of the order in each round.
        rounds: timed calls of each, on different images.
        advance: called after every evaluated image and every timed call.

    Raises:
        ValueError: if a test evaluator doesn't measure a mIoU.

    Returns:
        The rows, and the areas that the mIoU of each is made of.
    """
    for model in models.values():
        model.check_areas()
    first, part = models[lines[0].of], PARTS[0]
    batches = [first.batch(index) for index in range(min(rounds, len(first.dataset)))]
    metrics, areas = {}, []
    for line in lines:
        line.apply()
        metrics[line.name] = models[line.of].evaluate(advance)
        areas.append(models[line.of].areas)
    # Top-k and random selection keep the same number in every image of a size.
    gmacs = count_lines(lines, part, batches[:1])
    times = time_lines(
        lines, part, batches, rounds=rounds, warmup=WARMUP, seed=seed, advance=advance
    )
    return rows_of(lines, metrics, gmacs, times, 'mIoU'), areas


def as_json(row: Row, seed: int) -> dict[str, Any]:
    """What is written of a row: mIoU in per cent, 10⁹ multiply-adds, median ms.

    Args:
        row: of :func:`compare`.
        seed: of the random policies.
    """
    return dict(
        model=row.line.of,
        policy='none' if row.line.policy is None else row.line.kind,
        keep_ratios=row.line.keep_ratios,
        seed=seed,
        miou=round(float(row.value), 2),
        backbone_gflops=round(row.gmacs, 4),
        latency_ms=round(row.latency.median, 3),
        speedup=round(row.speedup.median, 3),
    )


HEADINGS = ('model', 'keep ratios', 'mIoU (%)', 'GMACs', 'ms', 'speed-up')


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What is written of a row as text, under :data:`HEADINGS`."""
    return (
        row['model'] if row['policy'] == 'none' else f'{row["model"]}, {row["policy"]}',
        ', '.join(f'{ratio:g}' for ratio in row['keep_ratios']) or '-',
        f'{row["miou"]:.2f}',
        f'{row["backbone_gflops"]:.3f}',
        f'{row["latency_ms"]:.1f}',
        f'{row["speedup"]:.2f}x',
    )
