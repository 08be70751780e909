"""The decision of a predictor and the output of a sparse backbone.

Shapes in this package: ``B`` images in the batch; a feature map of ``H`` rows, ``W`` columns and
``C`` channels has ``N = H * W`` locations, row-major.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmdyn.sparsity.compiling import lazy, length_of

Shapes = Sequence[tuple[int, int]]


def keep_count(real: Any, keep_ratio: float) -> Any:
    """Number of locations to keep: ⌊real · ratio⌋, at least 1; ``real`` may be a SymInt."""
    if isinstance(real, int):
        return max(1, int(real * keep_ratio))
    return torch.sym_max(1, torch.sym_int(real * keep_ratio))


# eq=False: comparing tensors field by field has no truth value.
@dataclass(frozen=True, eq=False)
class Decision:
    """Which locations take the slow path until the next decision.

    Attributes:
        scores: (B, N) float, log-probability that a location is kept.
        keep_mask: (B, N) float of 0 and 1; 1 = slow path. While training it
            carries the straight-through gradient to the predictor.
        keep_ratio: target fraction of real locations, in (0, 1].
        hw: (H, W) of the map, ``H * W == N``.
        valid_mask: (B, N) bool, False on padding; None if every location is real.
        counts: slow-path locations per image if known on the host; None = computed from the
            mask, which synchronises with the device.
        ranking: (B, N) int64, the locations of each image, its ``counts`` slow ones first; None
            = computed from the mask.
    """

    scores: Tensor
    keep_mask: Tensor
    keep_ratio: float
    hw: tuple[int, int]
    valid_mask: Tensor | None = None
    # init=False: dataclasses.replace with another mask must not copy them.
    counts: tuple[int, ...] | None = field(default=None, init=False)
    ranking: Tensor | None = field(default=None, init=False)

    def knowing(self, counts: tuple[int, ...] | None, ranking: Tensor | None = None) -> Decision:
        """Set counts and ranking known on the host; returns self."""
        object.__setattr__(self, 'counts', counts)
        object.__setattr__(self, 'ranking', ranking)
        return self

    # Computed on first use and shared by all blocks that follow the decision.
    @lazy
    def slow_mask(self) -> Tensor:
        """(B, N) float of 0 and 1, which locations take the slow path.

        The kept ones. At a keep ratio of 1 also padding: it is not kept, but reaches its
        neighbours through spatial mixing, so the output matches the dense model everywhere.
        """
        if self.valid_mask is None or self.keep_ratio < 1:
            return self.keep_mask
        return self.keep_mask.masked_fill(~self.valid_mask, 1.0)

    @lazy
    def slow_counts(self) -> tuple[int, ...]:
        """How many locations of each image take the slow path."""
        if self.counts is not None:
            return self.counts
        return tuple(map(int, self.slow_mask.detach().sum(dim=1).tolist()))

    @lazy
    def all_slow(self) -> bool:
        """Whether every location takes the slow path; False if there is a ranking."""
        locations = len(self.slow_counts) * self.hw[0] * self.hw[1]
        return self.ranking is None and sum(self.slow_counts) == locations

    @lazy
    def slow_first(self) -> tuple[Tensor, int, int]:
        """Locations of each image, (B, N) int64, slow path first; largest and smallest count."""
        order = self.ranking
        if order is None:
            order = (self.slow_mask.detach() == 0).byte().argsort(dim=1, stable=True)
        return order, max(self.slow_counts), min(self.slow_counts)

    @lazy
    def order(self) -> Tensor:
        """(B·N,) int64, the locations of the flattened batch, slow path first."""
        places = rows_of(self.slow_first[0], self.keep_mask.shape[1])
        if len(self.slow_counts) == 1:
            return places.flatten()
        images = list(zip(places.unbind(), self.slow_counts, strict=True))
        return torch.cat(
            [row[:slow] for row, slow in images] + [row[slow:] for row, slow in images]
        )

    @lazy
    def keep_idx(self) -> Tensor:
        """(K,) int64, slow-path locations in the flattened (B·N) order."""
        return self.order[: sum(self.slow_counts)]

    @lazy
    def drop_idx(self) -> Tensor:
        """(B·N - K,) int64, fast-path locations in the flattened (B·N) order."""
        return self.order[sum(self.slow_counts) :]

    def kept_fraction(self) -> Tensor:
        """(B,) float, kept fraction of each image's real locations; differentiable."""
        if self.valid_mask is None:
            return self.keep_mask.mean(dim=1)
        real = self.valid_mask.to(self.keep_mask.dtype)
        return (self.keep_mask * real).sum(dim=1) / real.sum(dim=1)


def rows_of(places: Tensor, length: int) -> Tensor:
    """Turn (B, K) indices into images of ``length`` rows into indices into the flattened batch."""
    batch = length_of(places)
    if batch == 1:
        return places
    return places + torch.arange(batch, device=places.device).unsqueeze(1) * length


@dataclass(frozen=True, eq=False)
class SparseOutput:
    """What a sparse backbone returns.

    Attributes:
        feats: one (B, C_i, H_i, W_i) map per output index.
        decisions: one per predictor, in order.
        shapes: for each map, the (h, w) of its unpadded part in each image, at the top left;
            None = no padding.
    """

    feats: tuple[Tensor, ...]
    decisions: tuple[Decision, ...]
    shapes: tuple[Shapes, ...] | None = None

    def shapes_on(self, hw: tuple[int, int]) -> Shapes | None:
        """Unpadded (h, w) per image on a map of (H, W), scaled from ``shapes`` if necessary."""
        if self.shapes is None:
            return None
        sizes = [(feat.shape[-2], feat.shape[-1]) for feat in self.feats]
        if hw in sizes:
            return self.shapes[sizes.index(hw)]
        height, width = sizes[0]
        return [
            (math.ceil(h * hw[0] / height), math.ceil(w * hw[1] / width)) for h, w in self.shapes[0]
        ]


def valid_mask_of(
    shapes: Shapes | None, map_hw: tuple[int, int], device: torch.device
) -> Tensor | None:
    """Mark the real locations of a padded batch.

    Args:
        shapes: unpadded (h, w) of each image's map, at the top left; None = no padding.
        map_hw: (H, W) of the batch's map.
        device: of the mask.

    Returns:
        (B, H·W) bool, or None without padding.
    """
    if shapes is None or all(tuple(shape) == tuple(map_hw) for shape in shapes):
        return None
    rows = torch.arange(map_hw[0], device=device)
    cols = torch.arange(map_hw[1], device=device)
    real = torch.tensor([tuple(shape) for shape in shapes], device=device)
    mask = (rows < real[:, :1])[:, :, None] & (cols < real[:, 1:])[:, None, :]
    return mask.flatten(1)


def check_valid_shapes(
    valid_shapes: Shapes | None, batch_size: int, image_hw: tuple[int, int]
) -> None:
    """Raise ValueError unless there is one positive (h, w) within the batch's per image."""
    if valid_shapes is None:
        return
    if len(valid_shapes) != batch_size:
        raise ValueError(
            f'valid_shapes has {len(valid_shapes)} entries for a batch of {batch_size}; '
            'give one (height, width) per image, or None'
        )
    for shape in valid_shapes:
        if len(shape) != 2 or not (0 < shape[0] <= image_hw[0] and 0 < shape[1] <= image_hw[1]):
            raise ValueError(
                f'valid_shapes holds {tuple(shape)}, but a real (height, width) must be positive '
                f"and at most the batch's {image_hw}"
            )
