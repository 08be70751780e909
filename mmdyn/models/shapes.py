"""Unpadded sizes of the images of a batch, in pixels and on a map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmdyn.sparsity.compiling import hw_of
from mmdyn.sparsity.decision import Shapes, check_valid_shapes


def real_shapes(
    metainfos: Sequence[Mapping[str, Any]], batch_size: int, image_hw: tuple[int, int]
) -> list[tuple[int, int]] | None:
    """Real (h, w) in pixels of each image of a padded batch, from the hosts' ``img_shape``.

    None if a sample lacks it or is larger than the batch's ``image_hw`` (which is then a crop).
    """
    shapes = [tuple(meta['img_shape'][:2]) for meta in metainfos if 'img_shape' in meta]
    height, width = image_hw
    if len(shapes) != batch_size or any(h > height or w > width for h, w in shapes):
        return None
    return [(int(h), int(w)) for h, w in shapes]


def shapes_on(
    x: Tensor, maps: Sequence[Tensor], valid_shapes: Shapes | None, stride: int
) -> Shapes | None:
    """Unpadded (h, w) in locations of each image on a map; None = no padding.

    Args:
        x: (B, C, H, W), the map.
        maps: that ``x`` was computed from; a ``source`` among them takes precedence.
        valid_shapes: else, real (h, w) of each image in pixels; None = no padding.
        stride: pixels per location; partly covered locations count.

    Raises:
        ValueError: if ``valid_shapes`` don't fit.
    """
    hw = hw_of(x)
    source = getattr(maps, 'source', None)
    if source is not None:
        return source.shapes_on(hw)
    if valid_shapes is None:
        return None
    # Some backbones round down, so their maps end before the image does.
    shapes = [(min(h, hw[0]), min(w, hw[1])) for h, w in coarser(valid_shapes, stride)]
    check_valid_shapes(shapes, x.shape[0], hw)
    return shapes


def coarser(shapes: Shapes | None, step: int) -> Shapes | None:
    """Sizes (h, w) of maps that are ``step`` times coarser, rounded up."""
    if shapes is None:
        return None
    return [(math.ceil(h / step), math.ceil(w / step)) for h, w in shapes]
