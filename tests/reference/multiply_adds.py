"""Multiply-adds of the sparse backbones, computed from their architecture.

Derived from the papers' layers, independently of the operator counter; the two must agree exactly.
Conventions are those of ``mmdyn.analysis.counting``, for gathered execution at inference.

Every formula takes the size of the images in pixels, their number or what is ``kept`` of each on
the slow path (None = by top-k), and the backbone's constructor arguments with the same names and
defaults; it ignores those that don't affect multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.backbones.arguments import check_out_indices
from mmdyn.models.backbones.convnext import check_arch
from mmdyn.models.backbones.vit import default_out_indices, default_sparse_blocks
from mmdyn.sparsity import Decision
from mmdyn.sparsity.decision import keep_count

Kept = Sequence[Sequence[int]]
"""Number of locations on the slow path, per predictor and image."""


@dataclass(frozen=True)
class BackboneMacs:
    """Multiply-adds of a batch: of the backbone without predictors, and of those."""

    backbone: int
    predictors: int


@dataclass(frozen=True)
class _Stage:
    """A stage; ``enter`` (embedding or downsampling) and ``mix`` (of a block) are per image."""

    locations: int
    channels: int
    hidden: int
    depth: int
    enter: int
    mix: int


def kept_by_ratio(locations: int, keep_ratios: Sequence[float], batch: int = 1) -> Kept:
    """Locations kept by top-k and random selection without padding: ⌊N · ratio⌋, at least 1."""
    return [[keep_count(locations, ratio)] * batch for ratio in keep_ratios]


def kept_by(decisions: Sequence[Decision]) -> Kept:
    """Locations on the slow path, from decisions."""
    return [(decision.slow_mask > 0).sum(dim=1).tolist() for decision in decisions]


def predictor_macs(locations: int, channels: int, keep_ratios: Sequence[float]) -> int:
    """Cost of an image's predictors: Linear layers C to C, to C/2, to C/4, to 2 at every location.

    Half of the second one's input is constant over the image and is multiplied once. A ratio of 1
    needs no prediction.
    """
    half, quarter = channels // 2, channels // 4
    each = locations * (channels**2 + half * half + half * quarter + 2 * quarter)
    each += (channels - half) * half
    return sum(ratio < 1 for ratio in keep_ratios) * each


def swin_macs(
    image_hw: tuple[int, int],
    *,
    batch: int = 1,
    kept: Kept | None = None,
    in_channels: int = 3,
    embed_dims: int = 96,
    patch_size: int = 4,
    window_size: int = 7,
    mlp_ratio: float = 4,
    depths: Sequence[int] = (2, 2, 6, 2),
    strides: Sequence[int] = (4, 2, 2, 2),
    keep_ratios: Sequence[float] = (0.7, 0.5, 0.3),
    sparse_stage: int = 2,
    sparse_blocks: Sequence[int] | None = None,
    valid_shapes: Sequence[tuple[int, int]] | None = None,
    **_: Any,
) -> BackboneMacs:
    """Cost of a ``DynamicSwin``.

    Maps are padded to whole windows after the projection: projections cost what the map has,
    attention what the padded map has. (The hosts' Swin pads first and projects the padding too.)
    """
    stages, hw, before = [], image_hw, 0
    shapes = () if min(keep_ratios) == 1 else valid_shapes or ()
    unseen = 0
    for i, (depth, stride) in enumerate(zip(depths, strides, strict=True)):
        hw = (ceil(hw[0] / stride), ceil(hw[1] / stride))
        shapes = [(ceil(h / stride), ceil(w / stride)) for h, w in shapes]
        locations, channels = hw[0] * hw[1], embed_dims * 2**i
        padded = in_windows(hw, window_size)
        attention = 2 * window_size**2 * channels
        for shape in shapes:
            unseen += depth * (padded - in_windows(shape, window_size)) * attention
        # Patch merging concatenates 2x2 locations.
        width = in_channels * patch_size**2 if i == 0 else 4 * before
        stages.append(
            _Stage(
                locations=locations,
                channels=channels,
                hidden=int(mlp_ratio * channels),
                depth=depth,
                enter=locations * width * channels,
                mix=4 * locations * channels**2 + padded * attention,
            )
        )
        before = channels
    blocks = _positions(sparse_blocks, depths[sparse_stage], (2, 4, 6))
    macs = _staged_macs(stages, sparse_stage, blocks, keep_ratios, kept, batch)
    return replace(macs, backbone=macs.backbone - unseen)


def in_windows(hw: tuple[int, int], window_size: int) -> int:
    """Locations of a map padded to whole windows."""
    return ceil(hw[0] / window_size) * ceil(hw[1] / window_size) * window_size**2


def convnext_macs(
    image_hw: tuple[int, int],
    *,
    batch: int = 1,
    kept: Kept | None = None,
    arch: str | Mapping[str, Sequence[int]] = 'tiny',
    in_channels: int = 3,
    stem_patch_size: int = 4,
    keep_ratios: Sequence[float] = (0.7, 0.5, 0.3),
    sparse_stage: int = 2,
    sparse_blocks: Sequence[int] | None = None,
    **_: Any,
) -> BackboneMacs:
    """Cost of a ``DynamicConvNeXt``."""
    depths, widths = check_arch(arch)
    stages, hw, before = [], image_hw, in_channels
    for i, (depth, channels) in enumerate(zip(depths, widths, strict=True)):
        stride = stem_patch_size if i == 0 else 2
        hw = (hw[0] // stride, hw[1] // stride)  # what is left over at the edge is cut off
        locations = hw[0] * hw[1]
        stages.append(
            _Stage(
                locations=locations,
                channels=channels,
                hidden=4 * channels,
                depth=depth,
                enter=locations * before * stride**2 * channels,
                mix=locations * 7 * 7 * channels,
            )
        )
        before = channels
    blocks = _positions(sparse_blocks, depths[sparse_stage], (3, 6, 9))
    return _staged_macs(stages, sparse_stage, blocks, keep_ratios, kept, batch)


def vit_macs(
    image_hw: tuple[int, int],
    *,
    batch: int = 1,
    kept: Kept | None = None,
    patch_size: int = 16,
    embed_dims: int = 768,
    out_indices: int | Sequence[int] | None = None,
    in_channels: int = 3,
    num_layers: int = 12,
    mlp_ratio: float = 4,
    with_cls_token: bool = True,
    keep_ratios: Sequence[float] = (0.7, 0.49, 0.343),
    sparse_blocks: Sequence[int] | None = None,
    fast_path: bool = False,
    **_: Any,
) -> BackboneMacs:
    """Cost of a ``DynamicViT``; all images of a batch cost what the largest one costs."""
    channels, prefix = embed_dims, int(with_cls_token)
    locations = ceil(image_hw[0] / patch_size) * ceil(image_hw[1] / patch_size)
    kept = kept_by_ratio(locations, keep_ratios, batch) if kept is None else kept
    positions = default_sparse_blocks(num_layers) if sparse_blocks is None else sparse_blocks
    if out_indices is None:
        out_indices = default_out_indices(num_layers)
    per_token = 4 * channels**2 + 2 * channels * int(mlp_ratio * channels)
    backbone = locations * in_channels * patch_size**2 * channels
    for i in range(max(check_out_indices(out_indices, num_layers)) + 1):
        counts = _in_force(kept, positions, i) or [locations]
        tokens = max(counts) + prefix
        backbone += tokens * per_token + 2 * tokens**2 * channels
        if fast_path and i >= positions[0]:
            # If images keep different numbers, fillers take the slow path too.
            filled = min(counts) < max(counts)
            backbone += (locations + prefix if filled else locations - max(counts)) * channels**2
    images = len(kept[0])
    predictors = 0
    for position, ratio in zip(positions, keep_ratios, strict=True):  # of the tokens kept so far
        scored = max(_in_force(kept, positions, position - 1) or [locations])
        predictors += predictor_macs(scored, channels, (ratio,))
    return BackboneMacs(images * backbone, images * predictors)


FORMULAS: dict[type, Callable[..., BackboneMacs]] = {
    DynamicSwin: swin_macs,
    DynamicConvNeXt: convnext_macs,
    DynamicViT: vit_macs,
}
"""Formulas by backbone."""


def _staged_macs(
    stages: Sequence[_Stage],
    sparse_stage: int,
    sparse_blocks: Sequence[int],
    keep_ratios: Sequence[float],
    kept: Kept | None,
    batch: int,
) -> BackboneMacs:
    """Cost of a backbone with dense mixing, then an MLP or a fast path per location."""
    sparse = stages[sparse_stage]
    kept = kept_by_ratio(sparse.locations, keep_ratios, batch) if kept is None else kept
    images, backbone = len(kept[0]), 0
    for stage in stages:
        backbone += images * (stage.enter + stage.depth * stage.mix)
        for block in range(stage.depth):
            everywhere = images * stage.locations
            counts = _in_force(kept, sparse_blocks, block) if stage is sparse else None
            slow = everywhere if counts is None else sum(counts)
            backbone += slow * 2 * stage.channels * stage.hidden
            backbone += (everywhere - slow) * stage.channels**2
    predictors = predictor_macs(sparse.locations, sparse.channels, keep_ratios)
    return BackboneMacs(backbone, images * predictors)


def _in_force(kept: Kept, positions: Sequence[int], block: int) -> Sequence[int] | None:
    """What the last predictor before a block keeps; None before the first one."""
    asked = sum(position <= block for position in positions)
    return kept[asked - 1] if asked else None


def _positions(given: Sequence[int] | None, depth: int, deep: Sequence[int]) -> Sequence[int]:
    """Predictor positions, by default the paper's."""
    if given is not None:
        return given
    return (1, 2, 3) if depth <= 9 else deep
