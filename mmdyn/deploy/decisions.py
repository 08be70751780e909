"""Top-k decisions whose numbers of locations follow from the map's size alone.

A decision of :mod:`mmdyn.sparsity.policy` may keep any number of locations, so the
shapes after it depend on the data, and a traced graph can hold them only as
unknowns. Here each image keeps ⌊N·ratio⌋, which the graph knows from N.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mmdyn.sparsity import Decision
from mmdyn.sparsity.policy import Site


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


class RankedPolicy:
    """Top-k for a traced graph, without padding; see :class:`mmdyn.sparsity.TopKPolicy`."""

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        """See :class:`mmdyn.sparsity.Policy`."""
        scores = log_probs[..., 0]
        if site.keep_ratio >= 1:
            return AllSlow(scores, torch.ones_like(scores), site.keep_ratio, site.hw)
        ranking = scores
        if site.candidates is not None:
            ranking = scores.masked_fill(site.candidates == 0, float('-inf'))
        # Stable: as in the policy, the lower of two equal ones comes first.
        order = ranking.argsort(dim=1, descending=True, stable=True)
        count = kept_of(scores.shape[1], site.keep_ratio)
        keep_mask = torch.zeros_like(scores).scatter(1, order[:, :count], 1.0)
        return RankedDecision(scores, keep_mask, site.keep_ratio, site.hw, order=order, count=count)
