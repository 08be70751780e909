"""Which keep ratios meet a budget: the grid, what they cost, and which are worth a try."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Ladder = tuple[float, ...]
Cost = Callable[[Ladder], float]

LOWEST = 0.1
_MOST_LADDERS = 10_000
_DIGITS = 6


def levels_of(step: float, lowest: float = LOWEST) -> tuple[float, ...]:
    """The keep ratios of a grid, from 1 down.

    Args:
        step: between two of them, in (0, 1 - lowest].
        lowest: where the grid ends, in (0, 1].

    Raises:
        ValueError: if one is out of range.
    """
    if not 0 < lowest <= 1:
        raise ValueError(f'the lowest keep ratio must be above 0 and at most 1, got {lowest}')
    if not 0 < step <= 1:
        raise ValueError(f'the step between keep ratios must be above 0 and at most 1, got {step}')
    count = math.floor((1 - lowest) / step + 1e-9) + 1
    return tuple(round(1 - step * k, _DIGITS) for k in range(count))


def ladders_of(levels: Sequence[float], predictors: int) -> list[Ladder]:
    """Every choice of one level per predictor that never rises from one to the next.

    Args:
        levels: from the highest to the lowest.
        predictors: how many there are.

    Raises:
        ValueError: if there are too many to look through.
    """
    count = math.comb(len(levels) + predictors - 1, predictors)
    if count > _MOST_LADDERS:
        raise ValueError(
            f'{len(levels)} levels for {predictors} predictors make {count} choices, at most '
            f'{_MOST_LADDERS} are looked through: take a larger step between keep ratios'
        )
    return list(itertools.combinations_with_replacement(levels, predictors))


class AdditiveCost:
    """What a ladder costs if every predictor's ratio has its own share, whatever the others'.

    That is so of multiply-adds: a ratio decides about the blocks from its predictor to the
    next. The shares are read off ladders that differ in one entry.

    Args:
        levels: of the grid, from the highest to the lowest.
        predictors: how many there are.
        costs: of every ladder of :meth:`probes`.
    """

    def __init__(
        self, levels: Sequence[float], predictors: int, costs: Mapping[Ladder, float]
    ) -> None:
        lowest = levels[-1]
        self._base = costs[(lowest,) * predictors]
        self._levels = levels[::-1]  # as np.interp wants them
        self._shares = [
            [costs[_probe(level, levels, predictors, place)] for level in self._levels]
            for place in range(predictors)
        ]

    @staticmethod
    def probes(levels: Sequence[float], predictors: int) -> list[Ladder]:
        """The ladders whose cost has to be known."""
        every = (
            _probe(level, levels, predictors, place)
            for place in range(predictors)
            for level in levels
        )
        return list(dict.fromkeys(every))

    def __call__(self, ladder: Ladder) -> float:
        """The cost of a ladder; between the levels it is interpolated."""
        pairs = zip(self._shares, ladder, strict=True)
        rises = (np.interp(ratio, self._levels, share) - share[0] for share, ratio in pairs)
        return self._base + float(sum(rises))


def _probe(level: float, levels: Sequence[float], predictors: int, place: int) -> Ladder:
    """One entry at a level, those before it at the highest, those behind it at the lowest."""
    return (levels[0],) * place + (level,) + (levels[-1],) * (predictors - place - 1)


@dataclass(frozen=True)
class StraightLine:
    """Milliseconds as a straight line over multiply-adds.

    Attributes:
        intercept: what no multiply-add takes.
        slope: of one unit of them.
    """

    intercept: float
    slope: float

    @staticmethod
    def fit(costs: Sequence[float], times: Sequence[float]) -> StraightLine:
        """The least squares line that does not fall.

        Args:
            costs: at least one.
            times: measured at them.
        """
        x, y = np.asarray(costs, dtype=float), np.asarray(times, dtype=float)
        spread = ((x - x.mean()) ** 2).sum()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else 0.0
        slope = max(0.0, float(slope))
        return StraightLine(float(y.mean() - slope * x.mean()), slope)

    def __call__(self, cost: float) -> float:
        """The time to be expected at a cost."""
        return self.intercept + self.slope * cost


def within(ladders: Sequence[Ladder], cost: Cost, budget: float) -> list[Ladder]:
    """The ladders that cost no more than the budget."""
    return [ladder for ladder in ladders if cost(ladder) <= budget]


def frontier(ladders: Sequence[Ladder]) -> list[Ladder]:
    """The ladders that keep something more than each other one does.

    Where more kept is never worse, the best one is among them.

    Args:
        ladders: those within the budget, of one length.
    """
    if not ladders:
        return []
    found = np.array(ladders)
    best = [
        not ((found >= ladder).all(axis=1) & (found > ladder).any(axis=1)).any() for ladder in found
    ]
    return list(itertools.compress(ladders, best))


def spread_out(ladders: Sequence[Ladder], count: int, first: Sequence[Ladder] = ()) -> list[Ladder]:
    """So many ladders, each as far as can be from those taken before it.

    Args:
        ladders: to choose from.
        count: how many at most.
        first: taken before all others, whatever they are.
    """
    taken = list(dict.fromkeys(first))[:count]
    rest = [ladder for ladder in ladders if ladder not in taken]
    if not taken and rest:
        middle = np.mean(rest, axis=0)
        taken.append(min(rest, key=lambda ladder: float(np.abs(ladder - middle).sum())))
        rest.remove(taken[0])
    while rest and len(taken) < count:
        distances = np.abs(np.array(rest)[:, None] - np.array(taken)[None]).sum(axis=2)
        taken.append(rest.pop(int(distances.min(axis=1).argmax())))
    return taken
