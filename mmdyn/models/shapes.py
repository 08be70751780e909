"""Where a padded batch holds real content: as the hosts' samples say, and on a map."""

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
    """(h, w) in pixels of each image of a padded batch: the hosts' ``img_shape``.

    None if a sample doesn't say, or is larger than the batch's ``image_hw`` (a crop of it is looked
    at).
    """
    shapes = [tuple(meta['img_shape'][:2]) for meta in metainfos if 'img_shape' in meta]
    height, width = image_hw
    if len(shapes) != batch_size or any(h > height or w > width for h, w in shapes):
        return None
    return [(int(h), int(w)) for h, w in shapes]


def shapes_on(
    x: Tensor, maps: Sequence[Tensor], valid_shapes: Shapes | None, stride: int
) -> Shapes | None:
    """(h, w) in locations of what each image of a padded batch has of a map; None = the whole map.

    Args:
        x: (B, C, H, W), the map.
        maps: that it was made from. If they tell what the backbone said, that holds.
        valid_shapes: else, real (h, w) of each image in pixels; None = no padding.
        stride: pixels per location; an image has what it touches.

    Raises:
        ValueError: if ``valid_shapes`` don't fit.
    """
    hw = hw_of(x)
    source = getattr(maps, 'source', None)
    if source is not None:
        return source.shapes_on(hw)
    if valid_shapes is None:
        return None
    # Some backbones round down: the map ends before the image does.
    shapes = [(min(h, hw[0]), min(w, hw[1])) for h, w in coarser(valid_shapes, stride)]
    check_valid_shapes(shapes, x.shape[0], hw)
    return shapes


def coarser(shapes: Shapes | None, step: int) -> Shapes | None:
    """The (h, w) of maps whose locations are ``step`` a side, those begun included."""
    if shapes is None:
        return None
    return [(math.ceil(h / step), math.ceil(w / step)) for h, w in shapes]
