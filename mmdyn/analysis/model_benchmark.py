"""A model's lines timed on different images, case by case, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmdyn.analysis.images import Batch
from mmdyn.analysis.lines import DENSE, LEARNED, RANDOM, STOCK, Line
from mmdyn.analysis.measuring import Measurement, measure
from mmdyn.analysis.tables import with_quartiles
from mmdyn.models.compiled import compile_regions


@dataclass(frozen=True)
class Case:
    """What all contenders are measured on.

    Attributes:
        part: one of :data:`mmdyn.analysis.lines.PARTS`.
        shape: (h, w) in pixels.
        batch_size: images of a batch.
    """

    part: str
    shape: tuple[int, int]
    batch_size: int

    @property
    def name(self) -> str:
        """What it is called in tables and charts."""
        return f'{self.part}, {self.shape[0]}x{self.shape[1]}, batch {self.batch_size}'


def compile_lines(lines: Sequence[Line]) -> list[Line]:
    """Compile what the contenders run; a stock model stays as it is."""
    models = {id(line.model): line.model for line in lines if line.kind != STOCK}
    done = {key: compile_regions(model) for key, model in models.items()}
    return [replace(line, model=done.get(id(line.model), line.model)) for line in lines]


def measure_case(
    lines: Sequence[Line],
    case: Case,
    batches: Sequence[Batch],
    dtype: str,
    gmacs: Mapping[str, float],
    *,
    on_call: Callable[[], Any] = lambda: None,
    **timing: Any,
) -> list[dict[str, Any]]:
    """Measure the contenders on one case.

    Args:
        lines: one of them dense, the reference.
        case: what the batches belong to.
        batches: taken in turns.
        dtype: a key of :data:`mmdyn.analysis.measuring.DTYPES`.
        gmacs: of each line by name, counted before it was compiled, see
            :func:`mmdyn.analysis.rows.count_lines`.
        on_call: told after every timed call.
        **timing: see :func:`mmdyn.analysis.measuring.measure`.

    Returns:
        One row per line, as JSON can hold it.
    """
    contenders = {line.name: line.runner(case.part, dtype) for line in lines}
    device = batches[0].inputs.device
    macs = {name: 1e9 * value for name, value in gmacs.items()}
    found = measure(contenders, batches, macs=macs, device=device, on_call=on_call, **timing)
    shape = tuple(batches[0].inputs.shape[-2:])
    return [
        _row(line, replace(case, shape=shape), found[line.name], found[DENSE]) for line in lines
    ]


def _row(line: Line, case: Case, found: Measurement, dense: Measurement) -> dict[str, Any]:
    return dict(
        part=case.part,
        shape=list(case.shape),
        batch_size=case.batch_size,
        name=line.name,
        kind=line.kind,
        keep_ratios=list(line.keep_ratios),
        policy=None if line.policy is None else type(line.policy).__name__,
        **found.as_json(dense),
    )


HEADINGS = ('model', 'ms', 'speed-up', 'GMACs', 'realised', 'peak MiB')
"""Of a table of :func:`cells`."""


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row as text, under :data:`HEADINGS`."""
    return (
        row['name'],
        with_quartiles(row['ms'], '{:.1f}'),
        with_quartiles(row['speedup'], '{:.2f}') if row['kind'] != DENSE else '1',
        f'{row["gmacs"]:.3f}',
        # Without a saving there is nothing to realise.
        f'{row["realised"]["median"]:.2f}' if row['kind'] in (LEARNED, RANDOM) else '-',
        f'{row["peak_mib"]:.1f}',
    )
