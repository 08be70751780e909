"""A config's model dense, sparse and with random choice, on different images, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mmdyn.analysis.images import Batch
from mmdyn.analysis.latency import Run
from mmdyn.analysis.loading import LoadedModel
from mmdyn.analysis.measuring import (
    Measurement,
    choose,
    count_all_macs,
    in_dtype,
    measure,
)
from mmdyn.analysis.stock import build_stock_model
from mmdyn.models.compiled import compile_regions
from mmdyn.models.deciding import tile_part
from mmdyn.sparsity import Policy, RandomPolicy, TopKPolicy

DENSE, LEARNED, RANDOM, STOCK = 'dense', 'learned', 'random', 'stock'
PARTS = ('backbone', 'end-to-end')
"""What is timed, image tensor to feature maps, or normalised image tensor to predictions."""


@dataclass(frozen=True)
class Line:
    """One contender.

    Attributes:
        kind: ``'dense'`` (the reference), ``'learned'``, ``'random'`` or ``'stock'`` (the
            host's own dense model).
        model: what runs.
        keep_ratios: one per predictor; empty where there are none.
        policy: how a sparse backbone chooses; None = it has nothing to choose.
        tile_ratio: fraction of tiles that the head works on in full; None = it has none.
        tile_policy: how it chooses them; None = it has nothing to choose.
        title: what it is called; '' = kind and ratios.
    """

    kind: str
    model: nn.Module
    keep_ratios: tuple[float, ...] = ()
    policy: Policy | None = None
    tile_ratio: float | None = None
    tile_policy: Policy | None = None
    title: str = ''

    @property
    def name(self) -> str:
        """What it is called in tables and charts."""
        parts = [f'{ratio:g}' for ratio in self.keep_ratios]
        if self.tile_ratio is not None:
            parts.append(f'tiles {self.tile_ratio:g}')
        if self.title or self.kind in (DENSE, STOCK) or not parts:
            return self.title or self.kind
        return f'{self.kind} {", ".join(parts)}'

    def runner(self, part: str, dtype: str) -> Run:
        """What is timed: a function of a :class:`mmdyn.analysis.images.Batch`.

        Args:
            part: one of :data:`PARTS`.
            dtype: a key of :data:`mmdyn.analysis.measuring.DTYPES`.
        """
        model = self.model

        def extract(batch: Batch) -> Any:
            return model.backbone(batch.inputs)

        def predict(batch: Batch) -> Any:
            return model(batch.inputs, batch.samples(), mode='predict')

        device = next(model.parameters()).device
        run = in_dtype(extract if part == PARTS[0] else predict, dtype, device)

        def run_line(batch: Batch) -> Any:
            self.apply()
            return run(batch)

        return run_line

    def apply(self) -> None:
        """Have the model keep so much, chosen so, from now on."""
        choose(
            None if self.policy is None else self.model.backbone,
            self.keep_ratios,
            self.policy,
            None if self.tile_policy is None else tile_part(self.model),
            self.tile_ratio,
            self.tile_policy,
        )


@dataclass(frozen=True)
class Case:
    """What all contenders are measured on.

    Attributes:
        part: one of :data:`PARTS`.
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


def lines_of(
    loaded: LoadedModel,
    ladders: Sequence[tuple[float, ...]] = (),
    *,
    policy: Policy | None = None,
    random: bool = True,
    stock: bool = False,
    seed: int = 0,
) -> list[Line]:
    """Make the contenders of a model; all but a stock one share its weights.

    Args:
        loaded: the model.
        ladders: keep ratios to measure, one per predictor each; empty = the config's.
        policy: how the learned choice is made; None = as the config says.
        random: whether each is measured with a random choice too.
        stock: whether the host's own dense model takes part.
        seed: of the random choice.

    Raises:
        ValueError: if a dense model is asked for keep ratios or a policy, keep ratios
            don't fit, or there is no stock model.
    """
    model, backbone = loaded.model, loaded.backbone
    head = tile_part(model)
    if not loaded.is_sparse and (ladders or stock or (policy is not None and head is None)):
        raise ValueError(
            f'keep ratios, policies and --stock are for a sparse backbone, '
            f'{loaded.name} has a {type(backbone).__name__}: leave them out'
        )
    if not loaded.is_sparse and head is None:
        return [Line(DENSE, model)]

    def line(kind: str, ratios: tuple[float, ...], chosen: Policy | None) -> Line:
        tiles = tile_policy = None
        if head is not None:
            tiles = head.highest_ratio if kind == DENSE else tile_ratio
            tile_policy = chosen or head.policy
        own = (chosen or backbone.policy) if loaded.is_sparse else None
        return Line(kind, model, ratios, own, tiles, tile_policy)

    own = backbone.keep_ratios if loaded.is_sparse else ()
    tile_ratio = head and head.tile_ratio
    lines = [Line(STOCK, build_stock_model(loaded))] if stock else []
    lines.append(line(DENSE, (1.0,) * len(own), TopKPolicy()))
    for ladder in ladders or [own]:
        if loaded.is_sparse:
            backbone.set_keep_ratios(ladder)  # says what is wrong with them
            ladder = tuple(backbone.keep_ratios)
        lines.append(line(LEARNED, ladder, policy))
        if random:
            lines.append(line(RANDOM, ladder, RandomPolicy(seed)))
    return lines


def count(lines: Sequence[Line], case: Case, batch: Batch, dtype: str) -> dict[str, int]:
    """Multiply-adds of each contender on a batch.

    Args:
        lines: not compiled yet.
        case: what the batch belongs to.
        batch: of the case.
        dtype: a key of :data:`mmdyn.analysis.measuring.DTYPES`.

    Raises:
        ValueError: if the model does not run in a half precision.
    """
    contenders = {line.name: line.runner(case.part, dtype) for line in lines}
    try:
        return count_all_macs(contenders, batch)
    except RuntimeError as error:
        if dtype == 'fp32':
            raise
        # Operators outside torch, such as a detector's NMS, need not have it.
        raise ValueError(
            f'the {case.part} model does not run in {dtype} here ({error}): measure the backbone '
            'alone, or fp32'
        ) from error


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
    macs: Mapping[str, int],
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
        macs: of each line by name, see :func:`count`.
        on_call: told after every timed call.
        **timing: see :func:`mmdyn.analysis.measuring.measure`.

    Returns:
        One row per line, as JSON can hold it.
    """
    contenders = {line.name: line.runner(case.part, dtype) for line in lines}
    device = batches[0].inputs.device
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


def with_quartiles(spread: Mapping[str, float], form: str) -> str:
    """Median and quartiles as text, ``'10.1 [9.8, 10.6]'``."""
    median, lower, upper = (form.format(spread[key]) for key in ('median', 'lower', 'upper'))
    return f'{median} [{lower}, {upper}]'
