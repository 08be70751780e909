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
from mmdyn.analysis.images import Batch
from mmdyn.analysis.latency import Latency
from mmdyn.analysis.model_benchmark import DENSE, LEARNED, RANDOM, Line
from mmdyn.analysis.progress import Meter
from mmdyn.analysis.sweep import (
    Point,
    count_lines,
    evaluate_lines,
    lines_to_sweep,
    points_of,
    time_lines,
)
from mmdyn.analysis.testing import Advance, ModelTester, evenly
from mmdyn.models.deciding import tile_part
from mmdyn.sparsity import TopKPolicy

CHOSEN = 'chosen'
OVER = 'over the budget'

_TIGHTENED = 3
_CONFIRMED = 5
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
    far from each other, are measured, and evaluated if they fit. The best is measured once more,
    and gives way to the next if it then doesn't fit. A fraction of tiles stays as the config has
    it.

    Args:
        tester: the model and the images to calibrate on.
        budget: what an image may cost.
        part: of the model, one of :data:`mmdyn.analysis.model_benchmark.PARTS`.
        batches: of one image each, to measure on.
        metric: see :func:`mmdyn.analysis.testing.value_of`.
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
        tiles = tile_part(loaded.model)
        self._tile_ratios = () if tiles is None else (tiles.tile_ratio,)
        self.dense = self.line((1.0,) * len(self.own), dense=True)

    def line(self, ladder: Ladder, *, dense: bool = False, random: bool = False) -> Line:
        """What runs the model at a ladder.

        Args:
            ladder: one keep ratio per predictor.
            dense: rather the dense line.
            random: with a random choice.
        """
        lines = lines_to_sweep(
            self.tester.loaded, [ladder], tile_ratios=self._tile_ratios, seed=self.effort.seed
        )
        kind = DENSE if dense else RANDOM if random else LEARNED
        return next((line for line in lines if line.kind == kind), lines[0])

    def costs(self) -> dict[str, float]:
        """What the stages of :meth:`run` cost, in images, for a progress display."""
        return {
            'counting': 3.0 * len(self._probes()),
            'timing': float(self._timing_steps(self.effort.trials + 1)),
            'evaluating': float((self.effort.trials + 1) * self.tester.steps),
            'confirming': float(self._timing_steps(6) + self.tester.steps),
        }

    def run(self, meter: Meter) -> list[Point]:
        """Search.

        Args:
            meter: shows the progress; made for :meth:`costs`.

        Returns:
            What was tried: the dense model, every ladder that was measured, and the random
            choice at the one whose note is ``CHOSEN``.

        Raises:
            ValueError: if no ladder of the grid meets the budget.
        """
        with meter.stage('counting', len(self._probes())) as told:
            macs = self._count(told)
        with meter.stage('timing', self._timing_steps(self.effort.trials + 1)) as told:
            lines, gmacs, times = self._measure(macs, told)
        spent = {line.name: self.budget.spent(times[line.name], gmacs[line.name]) for line in lines}
        fits = [line for line in lines if spent[line.name] <= self.budget.target]
        evaluated = fits if self.dense in fits else [self.dense, *fits]
        with meter.stage('evaluating', len(evaluated) * self.tester.steps) as told:
            metrics = self._evaluate(evaluated, told)
        tried = {
            point.line.name: replace(point, note='' if point.line in fits else OVER)
            for point in points_of(lines, metrics, gmacs, times, self.metric)
        }
        ranking = sorted(fits, key=lambda line: (-tried[line.name].value, spent[line.name]))
        with meter.stage('confirming', self._timing_steps(6) + self.tester.steps) as told:
            for line in ranking[:_CONFIRMED]:
                again = self._points_again(line, metrics, told)
                confirmed = again[line.name]
                if self.budget.spent(confirmed.latency, confirmed.gmacs) <= self.budget.limit:
                    again[line.name] = replace(confirmed, note=CHOSEN)
                    return list((tried | again).values())
                tried[line.name] = replace(tried[line.name], note=f'{OVER} when timed again')
        raise ValueError(
            f'{len(ranking[:_CONFIRMED])} choices of keep ratios fitted {self.budget.limit:g} '
            f'{self.budget.unit} once and not again: other programs slow this machine down, or '
            'the margin is too small for it; raise --margin, or --rounds'
        )

    def _probes(self) -> list[Ladder]:
        return AdditiveCost.probes(self.levels, len(self.own))

    def _timing_steps(self, lines: int) -> int:
        return lines * (self.effort.rounds + _WARMUP + len(self.batches))

    def _count(self, told: Advance) -> AdditiveCost:
        """Multiply-adds of every ladder, from those of a few on one image."""
        probes = {ladder: self.line(ladder) for ladder in self._probes()}
        counted = count_lines(probes.values(), self.part, self.batches[:1], told)
        costs = {ladder: counted[line.name] for ladder, line in probes.items()}
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
            if min(spent[cheapest.name], spent[self.dense.name]) > budget.target:
                raise ValueError(
                    f'no keep ratios down to {self.levels[-1]:g} meet {budget.limit:g} '
                    f'{budget.unit}: the lowest take {spent[cheapest.name]:.3g}, dense '
                    f'{spent[self.dense.name]:.3g}, and {budget.target:.3g} is looked for. Raise '
                    'the budget, lower --lowest, or take a smaller model or smaller images'
                )
            others = [spent[line.name] for line in candidates if line.name != cheapest.name]
            if not others or min(others) <= budget.target:
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
        found = spread_out(best, self.effort.trials, within(first, expected, target))
        # Less kept can be better, where the model was trained with less.
        return spread_out(fitting, self.effort.trials, found)

    def _time(self, lines: Sequence[Line], told: Advance, factor: int = 1) -> dict[str, Latency]:
        return time_lines(
            lines,
            self.part,
            self.batches,
            rounds=factor * self.effort.rounds,
            warmup=_WARMUP,
            seed=self.effort.seed + factor,
            advance=told,
        )

    def _points_again(
        self, line: Line, metrics: dict[str, dict[str, float]], told: Advance
    ) -> dict[str, Point]:
        """A line measured once more, against dense and a random choice."""
        random = self.line(line.keep_ratios, random=True)
        lines = list({one.name: one for one in (self.dense, line, random)}.values())
        gmacs = count_lines(lines, self.part, self.batches, told)
        times = self._time(lines, told, 2)
        more = metrics | self._evaluate([one for one in lines if one.name not in metrics], told)
        return {
            point.line.name: point for point in points_of(lines, more, gmacs, times, self.metric)
        }

    def _evaluate(self, lines: Sequence[Line], told: Advance) -> dict[str, dict[str, float]]:
        testers = {id(self.tester.loaded.model): self.tester}
        return evaluate_lines(lines, testers, self.metric, told)
