"""Whether an exported graph computes what the model computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.deploy.exportable import head_of
from mmdyn.deploy.runtime import Run, as_tuple

TOLERANCE = 1e-3
"""Largest difference of an image's outputs, over their largest absolute value."""
AGREEMENT = 0.99
"""Smallest fraction of an image's pixels that must get the same class."""


@dataclass(frozen=True)
class Parity:
    """How far outputs are from the model's own, over several different images.

    Attributes:
        size: (h, w) of the images in pixels.
        images: how many.
        differing: how many are beyond ``TOLERANCE`` (1e-3 relative).
        agreement: fraction of pixels of the same class, in the worst image; None where the
            outputs are no logits.
        absolute: largest absolute difference.
        relative: largest difference over the largest absolute value of the same output.
    """

    size: tuple[int, int]
    images: int
    differing: int
    agreement: float | None
    absolute: float
    relative: float

    @property
    def holds(self) -> bool:
        """Whether this is the same function.

        A location whose score is within a rounding error of the last kept one's may be
        chosen by one and not by the other, which shows in one image and in few of its
        pixels. So half of the images may be beyond the tolerance, as long as classes agree.
        """
        agrees = self.agreement is None or self.agreement >= AGREEMENT
        return agrees and 2 * self.differing <= self.images


def reference_of(model: nn.Module) -> Run:
    """What a model computes without an export, by its host's own methods.

    Args:
        model: a segmentor, a detector or a backbone, in evaluation mode.
    """

    def run(images: Tensor) -> tuple[Tensor, ...]:
        if head_of(model) is not None:
            metas = [dict(img_shape=tuple(images.shape[2:])) for _ in images]
            return (model.encode_decode(images, metas),)
        return as_tuple(model.extract_feat(images) if hasattr(model, 'backbone') else model(images))

    return torch.no_grad()(run)


def check_parity(model: nn.Module, run: Run, batches: Iterable[Tensor]) -> Parity:
    """Compare an exported graph with the model that it was made from.

    Args:
        model: see ``reference_of``.
        run: the graph, see :func:`mmdyn.deploy.load_exported`.
        batches: (B, 3, h, w) images each, all of one size.
    """
    reference, head = reference_of(model), head_of(model)
    absolute, relative, agreements, size = [], [], [], (0, 0)
    for images in batches:
        size = (images.shape[2], images.shape[3])
        expected, got = reference(images), run(images)
        for image in range(len(images)):
            pairs = [(a[image], b[image]) for a, b in zip(expected, got, strict=True)]
            gaps = [(a - b).abs().max().item() for a, b in pairs]
            absolute.append(max(gaps))
            relative.append(
                max(
                    gap / max(a.abs().max().item(), 1e-12)
                    for gap, (a, _) in zip(gaps, pairs, strict=True)
                )
            )
            if head is not None:
                agreements.append(_agreement(*pairs[0], getattr(head, 'threshold', None)))
    return Parity(
        size=size,
        images=len(relative),
        differing=sum(not value <= TOLERANCE for value in relative),  # NaN differs
        agreement=min(agreements, default=None),
        absolute=max(absolute),
        relative=max(relative),
    )


def _agreement(expected: Tensor, got: Tensor, threshold: float | None) -> float:
    """Fraction of (classes, h, w) logits' pixels that get the same class.

    The threshold is the head's for its only channel's probability.
    """
    if len(expected) == 1:
        above = [logits.sigmoid() > threshold for logits in (expected, got)]
        return (above[0] == above[1]).float().mean().item()
    return (expected.argmax(dim=0) == got.argmax(dim=0)).float().mean().item()


def made_up_images(count: int, hw: tuple[int, int], seed: int = 0) -> Tensor:
    """(count, 3, h, w) normalised images of blobs and noise, all different."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.randn(count, 3, 6, 6, generator=generator)
    blobs = F.interpolate(blobs, size=hw, mode='bilinear', align_corners=False)
    return blobs + 0.3 * torch.randn(count, 3, *hw, generator=generator)
