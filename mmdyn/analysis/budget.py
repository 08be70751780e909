"""The keep ratios that meet a budget with the best metric, found by trying."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, compress
from typing import Any

import numpy as np

from mmdyn.analysis.evaluating import Advance, Evaluation, ModelTester
from mmdyn.analysis.images import HostBatch
from mmdyn.analysis.lines import RANDOM, Line, as_dense, as_set, chosen_by, restored
from mmdyn.analysis.measuring import Measurement
from mmdyn.analysis.rows import Row, measure_lines, rows_of
from mmdyn.sparsity import RandomPolicy, TopKPolicy

Ladder = tuple[float, ...]

CHOSEN = 'chosen'
OVER = 'over the budget'

_MOST_LADDERS = 10_000
_ATTEMPTS = 3


@dataclass(frozen=True)
class Budget:
    """What an image may cost.

    Attributes:
        unit: ``'ms'``, or ``'GMACs'`` (10⁹ multiply-adds, what papers call GFLOPs).
        limit: above 0.
        margin: fraction of a time budget that is left free while ratios are looked for, in
            [0, 1): a machine is not equally fast at all times.

    Raises:
        ValueError: if one is out of range.
    """

    unit: str
    limit: float
    margin: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf:
            raise ValueError(f'a budget must be above 0, got {self.limit} {self.unit}')
        if not 0 <= self.margin < 1:
            raise ValueError(f'the margin of a budget must lie in [0, 1), got {self.margin}')

    @property
    def target(self) -> float:
        """What is looked for."""
        return self.limit * (1 - self.margin) if self.unit == 'ms' else self.limit

    def spent(self, cost: Measurement) -> float:
        """What of a measurement counts against it."""
        return cost.latency.median if self.unit == 'ms' else cost.macs / 1e9


def ladders_of(predictors: int, step: float = 0.1, lowest: float = 0.1) -> list[Ladder]:
    """Every choice of a keep ratio per predictor, 1 to ``lowest`` by ``step``, that never rises.

    Raises:
        ValueError: if an argument is out of range, or there are too many to look through.
    """
    if not 0 < lowest <= 1:
        raise ValueError(f'the lowest keep ratio must be above 0 and at most 1, got {lowest}')
    if not 0 < step <= 1:
        raise ValueError(f'the step between keep ratios must be above 0 and at most 1, got {step}')
    levels = [round(1 - step * k, 6) for k in range(math.floor((1 - lowest) / step + 1e-9) + 1)]
    count = math.comb(len(levels) + predictors - 1, predictors)
    if count > _MOST_LADDERS:
        raise ValueError(
            f'{len(levels)} levels for {predictors} predictors make {count} choices, at most '
            f'{_MOST_LADDERS} are looked through: take a larger step between keep ratios'
        )
    return list(combinations_with_replacement(levels, predictors))


def probes(ladders: Sequence[Ladder]) -> list[Ladder]:
    """The ladders whose costs :func:`predicted_costs` needs, of those of :func:`ladders_of`."""
    (high, *_), (low, *_) = highest, lowest = ladders[0], ladders[-1]
    middle = min((ladder[0] for ladder in ladders), key=lambda ratio: abs(2 * ratio - high - low))
    steps = [(place, level) for place in range(len(highest)) for level in (high, middle, low)]
    found = (highest[:place] + (level,) + lowest[place + 1 :] for place, level in steps)
    return list(dict.fromkeys(found))


def predicted_costs(
    known: Mapping[Ladder, float], ladders: Sequence[Ladder]
) -> dict[Ladder, float]:
    """Costs of all ladders, if each predictor's ratio has its own share of second order.

    That is so of multiply-adds: a ratio decides about the blocks from its predictor to the
    next, where MLPs cost in proportion and a ViT's attention costs the square.
    """

    def terms(some: Sequence[Ladder]) -> np.ndarray:
        ratios = np.array(some)
        return np.hstack([np.ones((len(ratios), 1)), ratios, ratios**2])

    weights, *_ = np.linalg.lstsq(terms(list(known)), np.array(list(known.values())), rcond=None)
    return dict(zip(ladders, (terms(ladders) @ weights).tolist(), strict=True))


def frontier(ladders: Sequence[Ladder]) -> list[Ladder]:
    """The ladders that keep something more than each other one does.

    Where more kept is never worse, the best one is among them.
    """
    every = np.array(ladders)
    best = [not ((every >= one).all(axis=1) & (every > one).any(axis=1)).any() for one in every]
    return list(compress(ladders, best))


def spread_out(ladders: Sequence[Ladder], count: int, first: Sequence[Ladder]) -> list[Ladder]:
    """``first``, and then ladders as far as can be from those taken before, ``count`` at most."""
    taken = list(dict.fromkeys(first))[:count]
    rest = [ladder for ladder in ladders if ladder not in taken]
    while rest and len(taken) < count:
        from_ = np.array(taken or [np.ones(len(rest[0]))])
        distances = np.abs(np.array(rest)[:, None] - from_[None]).sum(axis=2)
        taken.append(rest.pop(int(distances.min(axis=1).argmax())))
    return taken


@dataclass
class Search:
    """Looks for the keep ratios of a sparse model that meet a budget.

    Multiply-adds of the whole grid follow from those of a few ladders, and time from a line over
    these. Of the ladders that should fit, the config's own and those that could not keep more
    anywhere are candidates, and others where there are few of these; some, far from each other,
    are measured, and evaluated if they fit. All are timed once more; the best that fits then too
    is chosen. A fraction of tiles stays as the config has it.

    Attributes:
        tester: the model and the images to calibrate on.
        part, rounds, seed: see :func:`mmdyn.analysis.rows.measure_lines`.
        batches: of one image each, to measure on.
        metric: see :func:`mmdyn.analysis.evaluating.metric_name`.
        trials: ladders that are timed and evaluated, at most.
        step, lowest: of the grid of keep ratios, see :func:`ladders_of`.

    Raises:
        ValueError: if the backbone is dense, or its policy doesn't follow keep ratios.
    """

    tester: ModelTester
    budget: Budget
    part: str
    batches: Sequence[HostBatch]
    metric: str | None = None
    trials: int = 16
    rounds: int = 20
    step: float = 0.1
    lowest: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        loaded = self.tester.loaded
        if not loaded.is_sparse:
            raise ValueError(
                f'a budget is met by keep ratios, and {loaded.name} has none: its backbone is a '
                f'{type(loaded.backbone).__name__}'
            )
        if not isinstance(loaded.backbone.policy, TopKPolicy):
            raise ValueError(
                f'{loaded.name} chooses by {type(loaded.backbone.policy).__name__}, whose cost '
                'keep ratios do not settle: a budget can be met with TopKPolicy'
            )
        self._own = as_set(loaded.model)
        self._dense = as_dense(loaded.model)
        self._grid = ladders_of(len(self._own.keep_ratios), self.step, self.lowest)

    @property
    def steps(self) -> int:
        """How often :meth:`run` calls ``advance``, about."""
        images = len(self.batches) + self.tester.steps
        return (self.trials + 2) * (2 * self.rounds + images)

    def run(self, advance: Advance = lambda: None) -> tuple[list[Row], str]:
        """Search; the model is as before when it ends.

        Args:
            advance: called after every measured call.

        Returns:
            All that was tried, the dense model first, with notes ``CHOSEN`` and ``OVER``;
            and why none is chosen and what to do, ``''`` if one is.
        """
        budget, dense = self.budget, self._dense
        with restored(self.tester.loaded.model):
            lines, costs = self._tried(advance)
            fitting = [x for x in lines if budget.spent(costs[x.name]) <= budget.target]
            found = self._evaluate([dense, *fitting], advance)
            rows = rows_of(lines, costs, found, self.metric)
            if not fitting:
                spent = [budget.spent(row.cost) for row in rows]
                return self._noted(rows), (
                    f'no keep ratios down to {self._grid[-1][0]:g} meet {budget.limit:g} '
                    f'{budget.unit}: the cheapest take {min(spent):.3g}, dense {spent[0]:.3g}, and '
                    f'{budget.target:.3g} is looked for. Raise the budget, lower --lowest, or take '
                    'a smaller model or smaller images'
                )
            ranking = sorted(
                (row for row in rows if row.line in fitting),
                key=lambda row: (-(row.value or 0.0), budget.spent(row.cost)),
            )
            best = ranking[0].line
            if best != dense:
                twin = replace(chosen_by(best, RandomPolicy(self.seed)), kind=RANDOM)
                lines.append(twin)
                found |= self._evaluate([twin], advance)
            macs = {name: cost.macs for name, cost in costs.items()}
            costs = self._measure(lines, advance, macs=macs, seed=self.seed + 1)
        rows = rows_of(lines, costs, found, self.metric)
        still = [r.line for r in ranking if budget.spent(costs[r.line.name]) <= budget.limit]
        if still:
            return self._noted(rows, still[0]), ''
        return self._noted(rows), (
            f'{len(ranking)} choices of keep ratios met {budget.limit:g} {budget.unit} at first, '
            'and none when they were timed again: other programs slow this machine down. Try '
            'again, with a higher --margin or more --rounds'
        )

    def _noted(self, rows: Sequence[Row], chosen: Line | None = None) -> list[Row]:
        def note(row: Row) -> str:
            if row.line == chosen:
                return CHOSEN
            return OVER if self.budget.spent(row.cost) > self.budget.limit else row.note

        return [replace(row, note=note(row)) for row in rows]

    def _line(self, ladder: Ladder) -> Line:
        line = replace(self._own, keep_ratios=ladder)
        return self._dense if line.keeps_everything else line

    def _measure(
        self, lines: Iterable[Line], advance: Advance, **settings: Any
    ) -> dict[str, Measurement]:
        settings = dict(rounds=self.rounds, seed=self.seed, on_call=advance) | settings
        return measure_lines(list(lines), self.part, self.batches, **settings)

    def _evaluate(self, lines: Iterable[Line], advance: Advance) -> dict[str, Evaluation]:
        found: dict[str, Evaluation] = {}
        for line in lines:
            if line.name not in found:
                line.apply()
                found[line.name] = self.tester.evaluate(advance)
        return found

    def _tried(self, advance: Advance) -> tuple[list[Line], dict[str, Measurement]]:
        """The dense model, candidates, and what is cheapest, measured."""
        budget, target, cheapest = self.budget, self.budget.target, self._line(self._grid[-1])
        expected = self._expected(advance)
        for _ in range(_ATTEMPTS):
            fitting = [ladder for ladder, cost in expected.items() if cost <= target + 1e-9]
            own = [ladder for ladder in fitting if ladder == self._own.keep_ratios]
            # Less kept can be better, where the model was trained with less.
            chosen = spread_out(frontier(fitting), self.trials, own)
            candidates = list(map(self._line, spread_out(fitting, self.trials, chosen)))
            lines = {line.name: line for line in [self._dense, *candidates, cheapest]}
            costs = self._measure(lines.values(), advance)
            spent = {name: budget.spent(cost) for name, cost in costs.items()}
            others = [spent[line.name] for line in candidates if line != cheapest]
            if spent[cheapest.name] > budget.target or not others or min(others) <= budget.target:
                break
            target *= budget.target / min(others)  # less was expected than it takes
        return list(lines.values()), costs

    def _expected(self, advance: Advance) -> dict[Ladder, float]:
        """What every ladder should cost, in the budget's unit."""
        of_time = self.budget.unit == 'ms'
        lines = {ladder: self._line(ladder) for ladder in probes(self._grid)}
        known = self._measure(lines.values(), advance, rounds=self.rounds if of_time else 1)
        own = [self._own.keep_ratios] if min(self._own.keep_ratios) >= self._grid[-1][0] else []
        gmacs = predicted_costs(
            {x: known[line.name].macs / 1e9 for x, line in lines.items()}, self._grid + own
        )
        sparse = [ladder for ladder, line in lines.items() if line != self._dense]
        if not of_time or len(sparse) < 2:
            return gmacs
        times = {x: known[lines[x].name].latency.median for x in lines}
        slope, start = np.polyfit([gmacs[x] for x in sparse], [times[x] for x in sparse], 1)
        if slope <= 0:
            slope, start = 0.0, np.mean([times[x] for x in sparse])
        return {x: times.get(x, start + slope * cost) for x, cost in gmacs.items()}
