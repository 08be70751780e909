"""Comparison of an exported graph with its model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.deploy.exportable import head_of
from mmdyn.deploy.graphs import Run, as_tuple

TOLERANCE = 1e-3
"""Largest difference of an image's outputs, relative to their largest absolute value."""
AGREEMENT = 0.99
"""Smallest fraction of an image's pixels that must have the same class."""


@dataclass(frozen=True)
class Parity:
    """Difference of outputs from the model's, over several images.

    Attributes:
        size: (h, w) of the images in pixels.
        images: their number.
        differing: number of images beyond ``TOLERANCE`` (1e-3 relative).
        agreement: fraction of pixels with the same class in the worst image; None if the outputs
            are not logits.
        absolute: largest absolute difference.
        relative: largest difference relative to the largest absolute value of the same output.
    """

    size: tuple[int, int]
    images: int
    differing: int
    agreement: float | None
    absolute: float
    relative: float

    @property
    def holds(self) -> bool:
        """Whether the outputs agree.

        A location whose score is within rounding errors of the last kept one's may be selected by
        only one of the two, which affects few pixels of that image. So half of the images may
        exceed the tolerance if classes agree.
        """
        agrees = self.agreement is None or self.agreement >= AGREEMENT
        return agrees and 2 * self.differing <= self.images


def reference_of(model: nn.Module) -> Run:
    """The function that a graph of a segmentor, detector or backbone must reproduce.

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
    """Compare an exported graph with its model.

    Args:
        model: see ``reference_of``.
        run: the graph, see :func:`mmdyn.deploy.load_exported`.
        batches: (B, C, h, w) images each, of one size.
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
    """(B, h, w) classes of (B, classes, h, w); a single channel's probability has a threshold."""
    if logits.shape[1] == 1:
        return logits[:, 0].sigmoid() > threshold
    return logits.argmax(dim=1)


def made_up_images(count: int, hw: tuple[int, int], channels: int = 3) -> Tensor:
    """(count, channels, h, w) normalised images of blobs and noise, all different."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randn(count, channels, 6, 6, generator=generator)
    blobs = F.interpolate(blobs, size=hw, mode='bilinear', align_corners=False)
    return blobs + 0.3 * torch.randn(count, channels, *hw, generator=generator)
