"""What a model decided while it predicted, whoever called it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from mmdyn.engine.wrappers import unwrapped
from mmdyn.models.deciding import Deciding, tile_part
from mmdyn.sparsity import Decision, Policy
from mmdyn.sparsity.policy import Site


class Recorder:
    """A policy that asks another one, and remembers what that decided.

    Args:
        policy: whose decisions.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.decisions: list[Decision] = []

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        """See :class:`mmdyn.sparsity.Policy`."""
        decision = self.policy(log_probs, site)
        self.decisions.append(decision)
        return decision


@dataclass(frozen=True)
class Recording:
    """The decisions of a prediction, in the order in which they were made.

    Attributes:
        locations: the sparse backbone's; of sliding inference, window after window.
        tiles: of a head or neck that chooses tiles.
    """

    locations: list[Decision] = field(default_factory=list)
    tiles: list[Decision] = field(default_factory=list)


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record what a host's model decides for a while.

    Args:
        model: in evaluation mode, wrapped or not; its policies are back when the block ends.
    """
    recording = Recording()
    model = unwrapped(model)
    backbone = unwrapped(getattr(model, 'backbone', None))
    parts = ((backbone, recording.locations), (tile_part(model), recording.tiles))
    with ExitStack() as after:
        for part, decisions in parts:
            if not isinstance(part, Deciding):
                continue
            recorder = Recorder(part.policy)
            recorder.decisions = decisions
            after.callback(setattr, part, 'policy', part.policy)
            part.policy = recorder
        yield recording
