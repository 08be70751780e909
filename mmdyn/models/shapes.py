"""Where a padded batch holds real content, as the hosts' samples say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def real_shapes(
    metainfos: Sequence[Mapping[str, Any]], batch_size: int, image_hw: tuple[int, int]
) -> list[tuple[int, int]] | None:
    """Read off the samples where a padded batch holds real content.

    Args:
        metainfos: one per image, with the hosts' ``img_shape``.
        batch_size: images in the batch.
        image_hw: (height, width) of the batch in pixels.

    Returns:
        (h, w) of each image in pixels; None if a sample doesn't say, or is
        larger than the batch (a crop of it is looked at).
    """
    shapes = [tuple(meta['img_shape'][:2]) for meta in metainfos if 'img_shape' in meta]
    height, width = image_hw
    if len(shapes) != batch_size or any(h > height or w > width for h, w in shapes):
        return None
    return [(int(h), int(w)) for h, w in shapes]
