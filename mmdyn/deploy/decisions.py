"""Top-k decisions whose numbers of locations follow from the map's size alone.

A decision of :mod:`mmdyn.sparsity.policy` may keep any number of locations, so the
shapes after it depend on the data, and a traced graph can hold them only as
unknowns. Here each image keeps ⌊N·ratio⌋, which the graph knows from N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from mmdyn.sparsity import Decision


@dataclass(frozen=True, eq=False)
class RankedDecision(Decision):
    """A decision that keeps as many locations of every image, the first of a ranking.

    Attributes:
        order: (B, N) int64, each image's locations, the kept ones first.
        count: how many of them are kept, below N.
    """

    order: Tensor = field(kw_only=True)
    count: int = field(kw_only=True)

    @cached_property
    def keep_idx(self) -> Tensor:
        """See the base class; in the ranking's order."""
        return self._flat[:, : self.count].flatten()

    @cached_property
    def drop_idx(self) -> Tensor:
        """See the base class; in the ranking's order."""
        return self._flat[:, self.count :].flatten()

    @property
    def all_slow(self) -> bool:
        """See the base class."""
        return False

    @property
    def slow_first(self) -> tuple[Tensor, int, int]:
        """See the base class."""
        return self.order, self.count, self.count

    @cached_property
    def _flat(self) -> Tensor:
        batch, locations = self.order.shape
        return self.order + torch.arange(batch, device=self.order.device)[:, None] * locations


class AllSlow(Decision):
    """A decision that keeps everything, known without a look at the scores."""

    all_slow = True


def kept_of(locations: int, keep_ratio: float) -> int:
    """:func:`mmdyn.sparsity.policy.keep_count`, for a number that may be symbolic too."""
    return torch.sym_max(1, torch.sym_int(locations * keep_ratio))


class RankedDecisions:
    """Makes the decisions of one traced forward pass; stands in for a ``DecisionMaker``.

    Args:
        predictors: the backbone's score predictors, in order.
        keep_ratios: one per predictor. Where a ratio is 1 the predictor is not run.
        shrinking: whether a location that was dropped stays dropped.
    """

    def __init__(
        self, predictors: nn.ModuleList, keep_ratios: Sequence[float], shrinking: bool
    ) -> None:
        self.decisions: list[Decision] = []
        self._predictors = predictors
        self._keep_ratios = keep_ratios
        self._shrinking = shrinking

    def __call__(self, x: Tensor, hw: tuple[int, int]) -> Decision:
        """Let the next predictor decide.

        Args:
            x: (B, N, C) features of the sparse stage.
            hw: (H, W), ``H * W == N``.
        """
        index = len(self.decisions)
        ratio = self._keep_ratios[index]
        if ratio >= 1:
            ones = x.new_ones(x.shape[:2])
            decision: Decision = AllSlow(ones, ones, ratio, hw)
        else:
            before = self.decisions[-1] if self._shrinking and self.decisions else None
            decision = self._rank(x, hw, self._predictors[index], ratio, before)
        self.decisions.append(decision)
        return decision

    def padding(self, stage: int | None = None) -> None:
        """A graph sees no padding."""

    @staticmethod
    def _rank(
        x: Tensor,
        hw: tuple[int, int],
        predictor: nn.Module,
        ratio: float,
        before: Decision | None,
    ) -> RankedDecision:
        candidates = None if before is None else before.keep_mask
        scores = predictor(x, candidates)[..., 0]
        if candidates is not None:
            scores = scores.masked_fill(candidates == 0, float('-inf'))
        # Stable: as in the policy, the lower of two equal ones comes first.
        order = scores.argsort(dim=1, descending=True, stable=True)
        count = kept_of(scores.shape[1], ratio)
        keep_mask = torch.zeros_like(scores).scatter(1, order[:, :count], 1.0)
        return RankedDecision(scores, keep_mask, ratio, hw, order=order, count=count)
