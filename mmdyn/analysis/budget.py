"""Search for the keep ratios with the best metric within a budget."""

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
    """Limit on the cost of an image.

    Attributes:
        unit: ``'ms'``, or ``'GMACs'`` (10⁹ multiply-adds, which papers call GFLOPs).
        limit: positive.
        margin: fraction of a time budget that the search leaves free, in [0, 1), since the speed of
            a machine varies.

    Raises:
        ValueError: if a value is out of range.
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
        """Cost that the search aims for."""
        return self.limit * (1 - self.margin) if self.unit == 'ms' else self.limit

    def spent(self, cost: Measurement) -> float:
        """Cost of a measurement in the budget's unit."""
        return cost.latency.median if self.unit == 'ms' else cost.macs / 1e9


def ladders_of(predictors: int, step: float = 0.1, lowest: float = 0.1) -> list[Ladder]:
    """All non-increasing combinations of keep ratios, from 1 to ``lowest`` by ``step``.

    Raises:
        ValueError: if an argument is out of range, or there are too many combinations.
    """
    if not 0 < lowest <= 1:
        raise ValueError(f'the lowest keep ratio must be above 0 and at most 1, got {lowest}')
    if not 0 < step <= 1:
        raise ValueError(f'the step between keep ratios must be above 0 and at most 1, got {step}')
    levels = [round(1 - step * k, 6) for k in range(math.floor((1 - lowest) / step + 1e-9) + 1)]
    count = math.comb(len(levels) + predictors - 1, predictors)
    if count > _MOST_LADDERS:
        raise ValueError(
            f'{len(levels)} levels for {predictors} predictors make {count} combinations, more '
            f'than the limit of {_MOST_LADDERS}: use a larger step between keep ratios'
        )
    return list(combinations_with_replacement(levels, predictors))


def probes(ladders: Sequence[Ladder]) -> list[Ladder]:
    """Combinations whose costs :func:`predicted_costs` needs, from :func:`ladders_of`."""
    (high, *_), (low, *_) = highest, lowest = ladders[0], ladders[-1]
    middle = min((ladder[0] for ladder in ladders), key=lambda ratio: abs(2 * ratio - high - low))
    steps = [(place, level) for place in range(len(highest)) for level in (high, middle, low)]
    found = (highest[:place] + (level,) + lowest[place + 1 :] for place, level in steps)
    return list(dict.fromkeys(found))


def predicted_costs(
    known: Mapping[Ladder, float], ladders: Sequence[Ladder]
) -> dict[Ladder, float]:
    """Predict the costs of all combinations with a quadratic term for each predictor's ratio.

    This is exact for multiply-adds: a ratio applies to the blocks up to the next predictor, where
    MLPs cost proportionally, and a ViT's attention quadratically.
    """

    def terms(some: Sequence[Ladder]) -> np.ndarray:
        ratios = np.array(some)
        return np.hstack([np.ones((len(ratios), 1)), ratios, ratios**2])

    weights, *_ = np.linalg.lstsq(terms(list(known)), np.array(list(known.values())), rcond=None)
    return dict(zip(ladders, (terms(ladders) @ weights).tolist(), strict=True))


def frontier(ladders: Sequence[Ladder]) -> list[Ladder]:
    """Combinations that no other one dominates in every ratio.

    If keeping more is never worse, the best one is among them.
    """
    every = np.array(ladders)
    best = [not ((every >= one).all(axis=1) & (every > one).any(axis=1)).any() for one in every]
    return list(compress(ladders, best))


def spread_out(ladders: Sequence[Ladder], count: int, first: Sequence[Ladder]) -> list[Ladder]:
    """``first``, then combinations farthest from those before, at most ``count`` in total."""
    taken = list(dict.fromkeys(first))[:count]
    rest = [ladder for ladder in ladders if ladder not in taken]
    while rest and len(taken) < count:
        from_ = np.array(taken or [np.ones(len(rest[0]))])
        distances = np.abs(np.array(rest)[:, None] - from_[None]).sum(axis=2)
        taken.append(rest.pop(int(distances.min(axis=1).argmax())))
    return taken


@dataclass
class Search:
    """Searches the keep ratios of a sparse model that meet a budget.

    Multiply-adds of the whole grid are predicted from a few measured combinations, and times from a
    linear fit to these. Candidates are the config's own ratios and the undominated combinations
    that should fit, plus others if those are few; a spread-out selection is measured, and evaluated
    if it fits. All are timed once more, and the best that still fits is chosen. The tile ratio is
    the config's.

    Attributes:
        tester: the model and the images to calibrate on.
        part, rounds, seed: see :func:`mmdyn.analysis.rows.measure_lines`.
        batches: of one image each, to measure on.
        metric: see :func:`mmdyn.analysis.evaluating.metric_name`.
        trials: maximum number of combinations to time and evaluate.
        step, lowest: of the grid of keep ratios, see :func:`ladders_of`.

    Raises:
        ValueError: if the backbone is dense, or its policy does not follow keep ratios.
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
                f'a budget search needs keep ratios, which {loaded.name} lacks: its backbone is a '
                f'{type(loaded.backbone).__name__}'
            )
        if not isinstance(loaded.backbone.policy, TopKPolicy):
            raise ValueError(
                f'{loaded.name} uses {type(loaded.backbone.policy).__name__}, whose cost does not '
                'depend on keep ratios: a budget search needs TopKPolicy'
            )
        self._own = as_set(loaded.model)
        self._dense = as_dense(loaded.model)
        self._grid = ladders_of(len(self._own.keep_ratios), self.step, self.lowest)

    @property
    def steps(self) -> int:
        """Approximate number of calls of ``advance`` by :meth:`run`."""
        images = len(self.batches) + self.tester.steps
        return (self.trials + 2) * (2 * self.rounds + images)

    def run(self, advance: Advance = lambda: None) -> tuple[list[Row], str]:
        """Search; the model's settings are restored afterwards.

        Args:
            advance: called after every measured call.

        Returns:
            All trials, the dense model first, with notes ``CHOSEN`` and ``OVER``; and if none was
            chosen, the reason and remedy, else ``''``.
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
                    f'{budget.unit}: the cheapest take {min(spent):.3g}, dense {spent[0]:.3g}, '
                    f'the target is {budget.target:.3g}. Raise the budget, lower --lowest, or use '
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
            f'{len(ranking)} combinations of keep ratios met {budget.limit:g} {budget.unit} at '
            'first, but none when timed again: other programs slow this machine down. Try again, '
            'with a higher --margin or more --rounds'
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
        """Measure the dense model, candidates and the cheapest combination."""
        budget, target, cheapest = self.budget, self.budget.target, self._line(self._grid[-1])
        expected = self._expected(advance)
        for _ in range(_ATTEMPTS):
            fitting = [ladder for ladder, cost in expected.items() if cost <= target + 1e-9]
            own = [ladder for ladder in fitting if ladder == self._own.keep_ratios]
            # Keeping less can be better if the model was trained so.
            chosen = spread_out(frontier(fitting), self.trials, own)
            candidates = list(map(self._line, spread_out(fitting, self.trials, chosen)))
            lines = {line.name: line for line in [self._dense, *candidates, cheapest]}
            costs = self._measure(lines.values(), advance)
            spent = {name: budget.spent(cost) for name, cost in costs.items()}
            others = [spent[line.name] for line in candidates if line != cheapest]
            if spent[cheapest.name] > budget.target or not others or min(others) <= budget.target:
                break
            target *= budget.target / min(others)  # predictions were too low
        return list(lines.values()), costs

    def _expected(self, advance: Advance) -> dict[Ladder, float]:
        """Predict the cost of every combination in the budget's unit."""
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
