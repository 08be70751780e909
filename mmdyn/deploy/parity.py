"""Whether an exported graph computes what the model computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.deploy.exportable import head_of
from mmdyn.deploy.graphs import Run, as_tuple

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
    """What a segmentor, a detector or a backbone computes without an export.

    Args:
        model: in evaluation mode.
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
        batches: (B, C, h, w) images each, all of one size.
    """
    reference, head = reference_of(model), head_of(model)
    absolute, relative, agreements = [], [], []
    for images in batches:
        # One row per image, one column per output.
        pairs = list(zip(reference(images), run(images), strict=True))
        gaps = torch.stack([(a - b).abs().flatten(1).amax(1) for a, b in pairs], dim=1)
        scales = torch.stack([a.abs().flatten(1).amax(1) for a, _ in pairs], dim=1)
        absolute.append(gaps.amax(1))
        relative.append((gaps / scales.clamp(min=1e-12)).amax(1))
        if head is not None:
            classes = [_classes(logits, getattr(head, 'threshold', None)) for logits in pairs[0]]
            agreements.append((classes[0] == classes[1]).flatten(1).float().mean(1))
    relative = torch.cat(relative)
    return Parity(
        size=(images.shape[2], images.shape[3]),
        images=len(relative),
        differing=int((~(relative <= TOLERANCE)).sum()),  # NaN differs
        agreement=torch.cat(agreements).min().item() if agreements else None,
        absolute=torch.cat(absolute).max().item(),
        relative=relative.max().item(),
    )


def _classes(logits: Tensor, threshold: float | None) -> Tensor:
    """(B, h, w) of (B, classes, h, w); the threshold is of an only channel's probability."""
    if logits.shape[1] == 1:
        return logits[:, 0].sigmoid() > threshold
    return logits.argmax(dim=1)


def made_up_images(count: int, hw: tuple[int, int], channels: int = 3) -> Tensor:
    """(count, channels, h, w) normalised images of blobs and noise, all different."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randn(count, channels, 6, 6, generator=generator)
    blobs = F.interpolate(blobs, size=hw, mode='bilinear', align_corners=False)
    return blobs + 0.3 * torch.randn(count, channels, *hw, generator=generator)
