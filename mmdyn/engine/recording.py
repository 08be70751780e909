"""Records the decisions of a prediction and maps them to the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from mmdyn.engine.wrappers import unwrapped
from mmdyn.models.deciding import Deciding, tile_part
from mmdyn.sparsity import Decision, Policy
from mmdyn.sparsity.policy import Site

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Recording:
    """Decisions of a prediction, in order.

    Attributes:
        locations: of the sparse backbone; in sliding inference, window by window.
        tiles: of a head or neck that chooses tiles.
    """

    locations: list[Decision] = field(default_factory=list)
    tiles: list[Decision] = field(default_factory=list)


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record the decisions of a host's model in evaluation mode within the block.

    The policies are restored afterwards.
    """
    recording = Recording()
    model = unwrapped(model)
    backbone = unwrapped(getattr(model, 'backbone', None))
    with ExitStack() as after:
        for part, decisions in (
            (backbone, recording.locations),
            (tile_part(model), recording.tiles),
        ):
            if isinstance(part, Deciding):
                after.callback(setattr, part, 'policy', part.policy)
                part.policy = _recorder(part.policy, decisions)
        yield recording


def _recorder(policy: Policy, decisions: list[Decision]) -> Policy:
    """Wrap a policy so that its decisions are recorded."""

    def decide(log_probs: Tensor, site: Site) -> Decision:
        decisions.append(policy(log_probs, site))
        return decisions[-1]

    return decide


@dataclass(frozen=True, eq=False)
class Choice:
    """The decision of a predictor on a picture.

    Attributes:
        kept: (H, W) bool, locations, blocks or tiles on the slow path.
        scores: (H, W) float32, keep probability.
        real: (H, W) bool, False in padding.
        picture_hw: (h, w) of the picture in the model's input, in (fractional) locations.
    """

    kept: np.ndarray
    scores: np.ndarray
    real: np.ndarray
    picture_hw: tuple[float, float]

    @staticmethod
    def of(decision: Decision, index: int, stride: int, hw: tuple[int, int]) -> Choice:
        """Extract one image from the decision of a batch.

        Args:
            decision: of the batch.
            index: of the image.
            stride: pixels of the model's input per location.
            hw: (h, w) of the image in the model's input, in pixels.
        """
        kept, scores, real = (
            None if values is None else values[index].view(decision.hw).detach().cpu().numpy()
            for values in (decision.keep_mask, decision.scores.float().exp(), decision.valid_mask)
        )
        real = np.ones(decision.hw, bool) if real is None else real
        return Choice(kept > 0, scores, real, (hw[0] / stride, hw[1] / stride))

    @property
    def fraction(self) -> float:
        """Kept fraction of the real locations."""
        return float(self.kept[self.real].mean())

    def on_picture(self, hw: tuple[int, int]) -> np.ndarray:
        """(h, w) bool: pixels of the picture whose location was kept.

        Pixels beyond the last real location (of a backbone that rounds down) show the last one.
        """
        counts = (int(self.real.any(axis=axis).sum()) for axis in (1, 0))
        rows, columns = (
            np.minimum((np.arange(side) + 0.5) * extent / side, count - 1).astype(int)
            for side, extent, count in zip(hw, self.picture_hw, counts, strict=True)
        )
        return self.kept[np.ix_(rows, columns)]


def windows_of(model: nn.Module, hw: tuple[int, int]) -> list[Window]:
    """Windows (y1, x1, y2, x2) that a segmentor predicts on, for an input of (h, w) pixels.

    As in mmseg's ``slide_inference``; without sliding, the whole input.
    """
    test_cfg = getattr(model, 'test_cfg', None) or {}
    if test_cfg.get('mode') != 'slide':
        return [(0, 0, *hw)]
    firsts = []
    for side, crop, stride in zip(hw, test_cfg['crop_size'], test_cfg['stride'], strict=True):
        count = max(side - crop + stride - 1, 0) // stride + 1
        ends = [min(i * stride + crop, side) for i in range(count)]
        firsts.append([(max(end - crop, 0), end) for end in ends])
    return [(y1, x1, y2, x2) for y1, y2 in firsts[0] for x1, x2 in firsts[1]]


def choices_of(
    model: nn.Module,
    recording: Recording,
    index: int,
    shape: tuple[int, int],
    hw: tuple[int, int],
) -> tuple[tuple[Choice, ...], Choice | None]:
    """Choices in one picture of a batch.

    Args:
        model: that was recorded.
        recording: its decisions.
        index: of the picture.
        shape: (h, w) of the picture in the model's input.
        hw: (h, w) of that input, with padding.

    Returns:
        One choice per predictor of the backbone, and that of tiles, if any. With overlapping
        windows a location counts as kept if any window kept it.
    """
    windows, tiles = windows_of(model, hw), tile_part(model)
    count = len(recording.locations) // len(windows)
    choices = tuple(
        _join(recording.locations[i::count], index, model.backbone.sparse_stride, shape, windows)
        for i in range(count)
    )
    if not recording.tiles:
        return choices, None
    stride = tiles.tile_size * getattr(tiles, 'fine_stride', tiles.finest_stride)
    return choices, _join(recording.tiles, index, stride, shape, windows)


def _join(
    decisions: Sequence[Decision],
    index: int,
    stride: int,
    shape: tuple[int, int],
    windows: Sequence[Window],
) -> Choice:
    """Merge the decisions of windows into one map."""
    parts = [Choice.of(decision, index, stride, shape) for decision in decisions]
    if len(parts) == 1:
        return parts[0]
    sides = [max(window[i] for window in windows) for i in (2, 3)]
    hw = tuple(-(-side // stride) for side in sides)
    whole = Choice(
        np.zeros(hw, bool), np.zeros(hw, np.float32), np.zeros(hw, bool), parts[0].picture_hw
    )
    # A location of the whole map takes the nearest location of each window that contains its
    # centre; a window's map may end before the window.
    middles = [
        np.minimum((np.arange(count) + 0.5) * stride, side - 0.5)
        for count, side in zip(hw, sides, strict=True)
    ]
    for part, (top, left, bottom, right) in zip(parts, windows, strict=True):
        y, x = (
            np.flatnonzero((middle >= first) & (middle < last))
            for middle, first, last in zip(middles, (top, left), (bottom, right), strict=True)
        )
        inner = np.ix_(
            np.minimum((middles[0][y] - top) // stride, part.kept.shape[0] - 1).astype(int),
            np.minimum((middles[1][x] - left) // stride, part.kept.shape[1] - 1).astype(int),
        )
        place = np.ix_(y, x)
        whole.kept[place] |= part.kept[inner]
        whole.real[place] |= part.real[inner]
        whole.scores[place] = np.maximum(whole.scores[place], part.scores[inner])
    return whole
