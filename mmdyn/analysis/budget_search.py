"""The keep ratios that meet a budget with the best metric, found by trying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmdyn.analysis.budget import (
    AdditiveCost,
    Cost,
    Ladder,
    StraightLine,
    frontier,
    ladders_of,
    levels_of,
    spread_out,
    within,
)
from mmdyn.analysis.evaluating import Advance, ModelTester, evenly
from mmdyn.analysis.images import Batch
from mmdyn.analysis.latency import Latency
from mmdyn.analysis.lines import RANDOM, Line, as_dense, as_set, chosen_by, restored
from mmdyn.analysis.progress import Meter
from mmdyn.analysis.rows import (
    Row,
    count_lines,
    evaluate_lines,
    one_of_each_size,
    rows_of,
    time_lines,
)
from mmdyn.sparsity import RandomPolicy, TopKPolicy

CHOSEN = 'chosen'
OVER = 'over the budget'

_TIGHTENED = 3
_WARMUP = 2
_DESIGN = 5
_SAFE = 0.92


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
        if self.unit not in ('ms', 'GMACs'):
            raise ValueError(f"a budget is of 'ms' or 'GMACs', got {self.unit!r}")
        if not 0 < self.limit < float('inf'):
            raise ValueError(f'a budget must be above 0, got {self.limit} {self.unit}')
        if not 0 <= self.margin < 1:
            raise ValueError(f'the margin of a budget must lie in [0, 1), got {self.margin}')

    @property
    def target(self) -> float:
        """What is looked for."""
        return self.limit * (1 - self.margin) if self.unit == 'ms' else self.limit

    def spent(self, latency: Latency, gmacs: float) -> float:
        """What of a measurement counts against it."""
        return latency.median if self.unit == 'ms' else gmacs


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        rows: all that was tried, the dense model first.
        chosen: the one that meets the budget with the best metric; None = none does.
        problem: why there is none, and what to do; '' if there is one.
    """

    rows: tuple[Row, ...]
    chosen: Row | None = None
    problem: str = ''


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        trials: ladders that are timed and evaluated, at most.
        rounds: timed calls of each.
        step, lowest: of the grid of keep ratios; see :func:`mmdyn.analysis.budget.levels_of`.
        seed: of everything random.
    """

    trials: int = 16
    rounds: int = 20
    step: float = 0.1
    lowest: float = 0.1
    seed: int = 0


class BudgetSearch:
    """Looks for the keep ratios of a sparse model that meet a budget.

    Multiply-adds of the whole grid follow from those of a few ladders, time from a line
    through a few measured ones. Of the ladders that should fit, the config's own and those that
    could not keep more anywhere are candidates, and others where there are few of these; some,
    far from each other, are measured, and evaluated if they fit. All are timed once more; the best
    that fits then too is chosen. A fraction of tiles stays as the config has it.

    Args:
        tester: the model and the images to calibrate on.
        budget: what an image may cost.
        part: of the model, one of :data:`mmdyn.analysis.lines.PARTS`.
        batches: of one image each, to measure on.
        metric: see :func:`mmdyn.analysis.evaluating.metric_name`.
        effort: how much is tried.

    Raises:
        ValueError: if the backbone is dense, or its policy doesn't follow keep ratios.
    """

    def __init__(
        self,
        tester: ModelTester,
        budget: Budget,
        part: str,
        batches: Sequence[Batch],
        *,
        metric: str | None = None,
        effort: Effort | None = None,
    ) -> None:
        loaded = tester.loaded
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
        self.tester, self.budget, self.part, self.batches = tester, budget, part, batches
        self.metric, self.effort = metric, effort or Effort()
        self.own: Ladder = tuple(loaded.backbone.keep_ratios)
        self.levels = levels_of(self.effort.step, self.effort.lowest)
        self.ladders = ladders_of(self.levels, len(self.own))
        self._learned = as_set(loaded.model)
        self.dense = as_dense(loaded.model)

    def line(self, ladder: Ladder) -> Line:
        """The model at a ladder, one keep ratio per predictor."""
        line = replace(self._learned, keep_ratios=ladder)
        return self.dense if line.keeps_everything else line

    def costs(self) -> dict[str, float]:
        """What the stages of :meth:`run` cost, in images, for a progress display."""
        lines = self.effort.trials + 2
        return {
            'counting': 3.0 * self._probe_steps(),
            'timing': float(self._timing_steps(lines)),
            'evaluating': float(lines * self.tester.steps),
            'timing again': float(self._timing_steps(lines)),
        }

    def run(self, meter: Meter) -> Found:
        """Search; the model is as before when it ends.

        Args:
            meter: shows the progress; made for :meth:`costs`.
        """
        with restored(self.tester.loaded.model):
            with meter.stage('counting', self._probe_steps()) as told:
                macs = self._count(told)
            with meter.stage('timing', self._timing_steps(self.effort.trials + 2)) as told:
                lines, gmacs, times = self._measure(macs, told)
            spent = {
                line.name: self.budget.spent(times[line.name], gmacs[line.name]) for line in lines
            }
            fits = [line for line in lines if spent[line.name] <= self.budget.target]
            evaluated = fits if self.dense in fits else [self.dense, *fits]
            with meter.stage('evaluating', len(evaluated) * self.tester.steps) as told:
                metrics = self._evaluate(evaluated, told)
            tried = rows_of(lines, metrics, gmacs, times, self.metric)
            if not fits:
                return Found(self._noted(tried), problem=self._none_fits(tried))
            steps = self._timing_steps(len(lines) + 1) + self.tester.steps
            with meter.stage('timing again', steps) as told:
                return self._confirm(lines, fits, tried, told)

    def _confirm(
        self, lines: list[Line], fits: list[Line], tried: list[Row], told: Advance
    ) -> Found:
        """Time everything once more; take the best that still fits, and its random twin."""
        by_name = {row.line.name: row for row in tried}
        ranking = sorted(
            (by_name[line.name] for line in fits),
            key=lambda row: (
                -(row.value or 0.0),
                self.budget.spent(row.latency, row.gmacs),
            ),
        )
        best = ranking[0].line
        random = replace(chosen_by(best, RandomPolicy(self.effort.seed)), kind=RANDOM)
        more = {random.name: random} if best != self.dense else {}
        lines = [*lines, *more.values()]
        gmacs = {row.line.name: row.gmacs for row in tried}
        gmacs |= count_lines(more.values(), self.part, self.batches, told)
        times = self._time(lines, told, again=True)
        metrics = {row.line.name: row.metrics for row in tried}
        metrics |= self._evaluate(list(more.values()), told)
        rows = rows_of(lines, metrics, gmacs, times, self.metric)
        again = {row.line.name: row for row in rows}
        for row in ranking:
            found = again[row.line.name]
            if self.budget.spent(found.latency, found.gmacs) <= self.budget.limit:
                chosen = replace(found, note=CHOSEN)
                return Found(self._noted(rows, chosen), chosen)
        return Found(
            self._noted(rows),
            problem=f'{len(ranking)} choices of keep ratios met {self._said()} at first, and none '
            'when they were timed again: other programs slow this machine down. Try again, with '
            'a higher --margin or more --rounds',
        )

    def _noted(self, rows: Sequence[Row], chosen: Row | None = None) -> tuple[Row, ...]:
        """The rows, with a word on those over the budget and on the chosen one."""
        found = []
        for row in rows:
            if chosen is not None and row.line == chosen.line:
                row = chosen
            elif self.budget.spent(row.latency, row.gmacs) > self.budget.limit:
                row = replace(row, note=OVER)
            found.append(row)
        return tuple(found)

    def _none_fits(self, tried: Sequence[Row]) -> str:
        spent = [self.budget.spent(row.latency, row.gmacs) for row in tried]
        return (
            f'no keep ratios down to {self.levels[-1]:g} meet {self._said()}: the cheapest take '
            f'{min(spent):.3g}, dense {spent[0]:.3g}, and {self.budget.target:.3g} is looked for. '
            'Raise the budget, lower --lowest, or take a smaller model or smaller images'
        )

    def _said(self) -> str:
        return f'{self.budget.limit:g} {self.budget.unit}'

    def _probes(self) -> list[Ladder]:
        return AdditiveCost.probes(self.levels, len(self.own))

    def _probe_steps(self) -> int:
        return len(self._probes()) * len(one_of_each_size(self.batches))

    def _timing_steps(self, lines: int) -> int:
        return lines * (self.effort.rounds + _WARMUP + len(self.batches))

    def _count(self, told: Advance) -> AdditiveCost:
        """Multiply-adds of every ladder, from those of a few, on an image of each size."""
        probes = {ladder: self.line(ladder) for ladder in self._probes()}
        costs = dict.fromkeys(probes, 0.0)
        for batch, weight in one_of_each_size(self.batches):
            counted = count_lines(probes.values(), self.part, [batch], told)
            for ladder, line in probes.items():
                costs[ladder] += weight * counted[line.name]
        return AdditiveCost(self.levels, len(self.own), costs)

    def _measure(
        self, macs: AdditiveCost, told: Advance
    ) -> tuple[list[Line], dict[str, float], dict[str, Latency]]:
        """Count and time the dense model, candidates, and what is cheapest."""
        budget, target = self.budget, self.budget.target
        cheapest = self.line((self.levels[-1],) * len(self.own))
        expected = macs if budget.unit == 'GMACs' else self._expected_ms(macs)
        for _ in range(_TIGHTENED):
            candidates = [self.line(ladder) for ladder in self._candidates(expected, target)]
            lines = list({line.name: line for line in [self.dense, *candidates, cheapest]}.values())
            gmacs = count_lines(lines, self.part, self.batches, told)
            times = self._time(lines, told)
            spent = {line.name: budget.spent(times[line.name], gmacs[line.name]) for line in lines}
            others = [spent[line.name] for line in candidates if line.name != cheapest.name]
            if spent[cheapest.name] > budget.target or not others or min(others) <= budget.target:
                break
            # The line through the measured times promised too much.
            target *= budget.target / min(others)
        return lines, gmacs, times

    def _expected_ms(self, macs: Cost) -> Cost:
        """Time over multiply-adds, from a few ladders between the cheapest and the dense one."""
        sparse = sorted((ladder for ladder in self.ladders if min(ladder) < 1), key=macs)
        if not sparse:
            return macs
        chosen = [sparse[index] for index in evenly(len(sparse) - 1, _DESIGN - 1)] + [sparse[-1]]
        lines = {ladder: self.line(ladder) for ladder in chosen}
        times = self._time([self.dense, *lines.values()], lambda: None)
        found = StraightLine.fit(
            [macs(ladder) for ladder in chosen], [times[lines[x].name].median for x in chosen]
        )
        dense = times[self.dense.name].median
        return lambda ladder: dense if min(ladder) == 1 else found(macs(ladder))

    def _candidates(self, expected: Cost, target: float) -> list[Ladder]:
        """Ladders that are worth a try, the config's own first if it fits."""
        fitting = within(self.ladders, expected, target)
        best = frontier(fitting)
        if self.budget.unit == 'ms':
            # Some of those at the very target will turn out to miss it.
            best += frontier(within(self.ladders, expected, _SAFE * target))
        uniform = [self.tester.loaded.ladder(level) for level in self.levels]
        first = [self.own, *within(uniform, expected, target)[:1]]
        first = [ladder for ladder in first if min(ladder) >= self.levels[-1]]
        found = spread_out(best, self.effort.trials, within(first, expected, target))
        # Less kept can be better, where the model was trained with less.
        return spread_out(fitting, self.effort.trials, found)

    def _time(
        self, lines: Sequence[Line], told: Advance, again: bool = False
    ) -> dict[str, Latency]:
        return time_lines(
            lines,
            self.part,
            self.batches,
            rounds=self.effort.rounds,
            warmup=_WARMUP,
            seed=self.effort.seed + again,
            advance=told,
        )

    def _evaluate(self, lines: Sequence[Line], told: Advance) -> dict[str, dict[str, float]]:
        testers = {id(self.tester.loaded.model): self.tester}
        return dict(evaluate_lines(lines, testers, told))
