"""What a predictor decided, as a value.

Shapes, here and in the modules beside this one: ``B`` images in the batch; the feature map that
the decision is about has ``H`` rows and ``W`` columns, that is ``N = H * W`` locations,
row-major, of ``C`` channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, int]]


def keep_count(real: int, keep_ratio: float) -> int:
    """Locations kept of ``real`` ones: ⌊real · ratio⌋, at least 1."""
    return max(1, int(real * keep_ratio))


# eq=False: comparing tensors field by field has no truth value.
@dataclass(frozen=True, eq=False)
class Decision:
    """Which locations take the slow path, until the next decision.

    Attributes:
        scores: (B, N) float, log-probability that a location is kept.
        keep_mask: (B, N) float of 0 and 1; 1 = slow path. While training it
            carries the straight-through gradient to the predictor.
        keep_ratio: the fraction of real locations that was asked for, in (0, 1].
        hw: (H, W) of the map, ``H * W == N``.
        valid_mask: (B, N) bool, False on a batch's padding; None if every
            location is real.
    """

    scores: Tensor
    keep_mask: Tensor
    keep_ratio: float
    hw: tuple[int, int]
    valid_mask: Tensor | None = None

    # Worked out on first use and shared by every block that follows the
    # decision; cached_property writes past the frozen dataclass.
    @cached_property
    def slow_mask(self) -> Tensor:
        """(B, N) float of 0 and 1, which locations take the slow path.

        The kept ones; at a keep ratio of 1 padding too, which is not *kept* but reaches its
        neighbours through spatial mixing, so that the dense model is met to the last location.
        """
        if self.valid_mask is None or self.keep_ratio < 1:
            return self.keep_mask
        return self.keep_mask.masked_fill(~self.valid_mask, 1.0)

    @cached_property
    def keep_idx(self) -> Tensor:
        """(K,) int64, slow-path locations in the flattened (B·N) order."""
        return self._indices(self.slow_mask.detach() != 0, self._expected)

    @cached_property
    def drop_idx(self) -> Tensor:
        """(B·N - K,) int64, fast-path locations in the flattened (B·N) order."""
        rest = self.keep_mask.shape[1] - self._expected
        return self._indices(self.slow_mask.detach() == 0, rest)

    @property
    def _expected(self) -> int:
        return keep_count(self.keep_mask.shape[1], self.keep_ratio)

    def _indices(self, chosen: Tensor, per_image: int) -> Tensor:
        # On the meta device, as many as top-k takes of each image.
        if chosen.is_meta:
            return torch.empty(len(chosen) * per_image, dtype=torch.int64, device=chosen.device)
        return chosen.flatten().nonzero().squeeze(1)

    @cached_property
    def all_slow(self) -> bool:
        """Whether no location takes the fast path."""
        return self.keep_idx.numel() == self.keep_mask.numel()

    @cached_property
    def slow_first(self) -> tuple[Tensor, int, int]:
        """Each image's locations, (B, N) int64, those on the slow path first.

        Beside them how many those are in the image that has the most, and the fewest.
        """
        slow = self.slow_mask.detach() > 0
        counts = slow.sum(dim=1)
        order = (~slow).byte().argsort(dim=1, stable=True)
        if counts.is_meta:
            return order, self._expected, self._expected
        return order, int(counts.max()), int(counts.min())

    def kept_fraction(self) -> Tensor:
        """(B,) float, kept share of each image's real locations; differentiable."""
        if self.valid_mask is None:
            return self.keep_mask.mean(dim=1)
        real = self.valid_mask.to(self.keep_mask.dtype)
        return (self.keep_mask * real).sum(dim=1) / real.sum(dim=1)


@dataclass(frozen=True, eq=False)
class SparseOutput:
    """What a sparse backbone returns.

    Attributes:
        feats: one (B, C_i, H_i, W_i) map per output index.
        decisions: one per predictor, in the order in which they were made.
        shapes: of each map, (h, w) of each image's own, at the top left of the batch's:
            the map that the image has alone. None = the batch has no padding.
    """

    feats: tuple[Tensor, ...]
    decisions: tuple[Decision, ...]
    shapes: tuple[Shapes, ...] | None = None

    def shapes_on(self, hw: tuple[int, int]) -> Shapes | None:
        """Each image's own (h, w) on a map of (H, W): one of these, or one resized from them."""
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
    """Mark the locations of a batch's map that hold real image content.

    Args:
        shapes: (h, w) of each image's own map, at the top left of the batch's as in the
            hosts' batches; None = the whole map.
        map_hw: (H, W) of the batch's map.
        device: where the mask is made.

    Returns:
        (B, H·W) bool, or None when nothing is padding.
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
    """Raise ValueError unless there is one (h, w) per image, above 0 and within the batch's."""
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
