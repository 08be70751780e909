"""COCO annotation files: what pycocotools fails on, or never comes back from, is found first.

pycocotools compares masks run by run until both end together: runs that don't fill their picture
have it go on for ever. A polygon's outline it walks pixel by pixel, however far that is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from mmdyn.errors import BadDataError

_NEAR = 1e5  # pixels; a polygon within costs little, and is not looked at further
_LONGEST = 1e7  # outline of a polygon, in pixels
_NUMBER = (int, float)
_SHOWN = 60  # characters of a value in a message


@contextlib.contextmanager
def checked(*, masks: bool, evaluated: bool) -> Iterator[None]:
    """Has every COCO file that is read within the block looked through, see :func:`check_coco`.

    Args:
        masks: Whether masks of the files will be used.
        evaluated: Whether a metric reads them.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError:  # it comes with mmdet
        yield
        return
    read = COCO.__init__

    def init(self: Any, annotation_file: str | None = None) -> None:
        read(self, annotation_file)
        if annotation_file is not None:
            check_coco(self.dataset, annotation_file, masks=masks, evaluated=evaluated)

    COCO.__init__ = init
    try:
        yield
    finally:
        COCO.__init__ = read


def check_coco(content: Mapping[str, Any], path: str, *, masks: bool, evaluated: bool) -> None:
    """Refuses ids that don't compare, and masks that pycocotools hangs on.

    Args:
        content: Of the file, indexed by pycocotools: entries have ids. Panoptic ones too.
        path: The file, for messages.
        masks: Whether to look at masks.
        evaluated: Whether a metric reads it, which needs ``iscrowd`` and ids that are numbers.

    Raises:
        BadDataError: naming the file, and the annotation by its id.
    """
    images = {image['id']: image for image in content.get('images') or ()}
    categories = [category['id'] for category in content.get('categories') or ()]
    of_image, of_category = _kind(images), _kind(categories)
    for what, ids, kind in (
        ('an image', images, of_image),
        ('a category', categories, of_category),
    ):
        for number in ids:
            if not isinstance(number, kind):
                raise BadDataError(
                    f'{path}: the id of {what} is {_short(number)}, not {_name(kind)} as others are'
                )
    for annotation in content.get('annotations') or ():
        image_id = annotation['image_id']
        image = images.get(image_id, {})
        for part in annotation.get('segments_info', (annotation,)):
            mask, problem = part.get('segmentation'), None
            boxes = evaluated and 'bbox' in part  # and not captions
            if not isinstance(image_id, of_image):
                problem = f'has image_id {_short(image_id)}, not {_name(of_image)}'
            elif not isinstance(part.get('category_id'), of_category):
                category = _short(part.get('category_id'))
                problem = f'has category_id {category}, not {_name(of_category)}'
            elif boxes and not isinstance(part.get('id'), _NUMBER):
                problem = f'has id {_short(part.get("id"))}, not a number'
            elif boxes and not isinstance(part.get('iscrowd'), _NUMBER):
                problem = f'has iscrowd {_short(part.get("iscrowd"))}, not 0 or 1'
            elif masks and image:
                wrong = _whats_wrong(mask, (image.get('height'), image.get('width')))
                problem = wrong and (
                    f"has no mask that can be used, 'segmentation' is {_short(mask)}: {wrong}"
                )
            if problem:
                raise BadDataError(
                    f'annotation {_short(part.get("id"))} of image '
                    f'{image.get("file_name", _short(image_id))} {problem}. Correct {path}, or '
                    'leave the annotation out'
                )


def _kind(ids: Collection[Any]) -> tuple[type, ...]:
    """What all ids must be: numbers if one is."""
    if not ids:
        return (object,)
    return _NUMBER if any(isinstance(one, _NUMBER) for one in ids) else (str,)


def _name(kind: tuple[type, ...]) -> str:
    return 'text' if kind == (str,) else 'a number'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'


def _whats_wrong(mask: Any, hw: tuple[Any, Any]) -> str | None:
    """Why pycocotools can't work with a mask; None if it can, or says so itself."""
    if isinstance(mask, dict):
        return _whats_wrong_with_runs(mask, hw)
    if isinstance(mask, list) and any(map(_is_endless, mask)):
        return f'its outline must be finite and at most {_LONGEST:.0e} pixels long'
    return None


def _whats_wrong_with_runs(mask: dict[str, Any], hw: tuple[Any, Any]) -> str | None:
    size, counts = mask.get('size'), mask.get('counts')
    if size != list(hw):
        return f"'size' must be the image's, {list(hw)}"
    if isinstance(counts, str):
        runs = run_lengths(counts)
        total = None if runs is None or (runs < 0).any() else int(runs.sum())
    else:
        whole = isinstance(counts, list) and all(map(_is_count, counts))
        total = sum(counts) if whole else None
    if total is None:
        return "'counts' must be whole numbers of 0 or more, as a list or as COCO packs them"
    if total != math.prod(hw):
        return f"'counts' add up to {total} pixels, the image has {math.prod(hw)}"
    return None


def _is_count(run: Any) -> bool:
    return isinstance(run, _NUMBER) and run >= 0 and run == run // 1


def run_lengths(text: str) -> np.ndarray | None:
    """The runs of a packed mask: 5 bits and one that says whether more follow in each character.

    Args:
        text: ``counts`` of a compressed mask.

    Returns:
        Lengths in pixels, by turns outside and inside; negative ones where the text is wrong.
        None: it is no such text.
    """
    if not text.isascii():
        return None
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:  # more than the 32 bits of a run
        return None
    runs = np.add.reduceat((codes & 31) << 5 * places, starts)
    runs[codes[ends] & 16 > 0] -= (32 << 5 * places[ends])[codes[ends] & 16 > 0]
    # From the fourth on, as the difference to the one before the last.
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def _is_endless(polygon: Any) -> bool:
    try:
        if not math.isfinite(sum(polygon)):
            return True
        if -_NEAR < min(polygon) and max(polygon) < _NEAR:
            return False
    except (TypeError, ValueError, OverflowError):  # no polygon, of which the host tells
        return False
    # In fifths of pixels, as 32 bits hold them.
    corners = np.clip(np.array(polygon[: len(polygon) // 2 * 2], float) * 5, -(2**31), 2**31 - 1)
    steps = np.abs(np.diff(corners.reshape(-1, 2), axis=0, append=corners[None, :2]))
    return float(steps.max(axis=1).sum()) > 5 * _LONGEST
