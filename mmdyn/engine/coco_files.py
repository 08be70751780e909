"""Checks of COCO annotation files for what makes pycocotools fail late or hang.

pycocotools compares masks run by run until both end together, which never happens if runs don't
fill the picture. It also walks the outline of a polygon pixel by pixel, however long it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from mmdyn.errors import BadDataError, one_line

_LONGEST = 1e7  # outline of a polygon in pixels
_NUMBER = (int, float)
_SHOWN = 60  # longest value in a message, in characters


@contextlib.contextmanager
def checked(*, masks: bool, measured: Collection[str] = ()) -> Iterator[None]:
    """Check every COCO file read within the block, see :func:`check_coco`.

    Args:
        masks: whether masks in the files will be used.
        measured: what a metric measures that reads them.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError:  # installed with mmdet
        yield
        return
    read = COCO.__init__

    def init(self: Any, annotation_file: str | None = None) -> None:
        read(self, annotation_file)
        if annotation_file is not None:
            encode = self.annToRLE if 'segm' in measured else None
            check_coco(self.dataset, annotation_file, masks=masks, measured=measured, encode=encode)

    COCO.__init__ = init
    try:
        yield
    finally:
        COCO.__init__ = read


def check_coco(
    content: Mapping[str, Any],
    path: str,
    *,
    masks: bool,
    measured: Collection[str] = (),
    encode: Callable[[dict], Any] | None = None,
) -> None:
    """Refuse incomparable ids, values that make metrics fail at their end, and endless masks.

    Args:
        content: of the file, indexed by pycocotools (entries have ids); may be panoptic.
        path: of the file, for messages.
        masks: whether to check masks.
        measured: what a metric measures: 'bbox', 'segm' ...
        encode: called on every annotation with a mask, as by a metric.

    Raises:
        BadDataError: naming the file and the id of the annotation.
    """
    annotations = content.get('annotations') or ()
    images, is_image = _entries(content, 'images', path)
    categories, is_category = _entries(content, 'categories', path)
    needed = dict(image_id=is_image, category_id=is_category)
    if measured and not any('caption' in annotation for annotation in annotations):
        for key in ('images', 'categories'):
            if key not in content:
                raise BadDataError(f'{path} has no {key!r}, which a metric needs')
        for number, category in categories.items():
            if 'name' not in category:
                raise BadDataError(f'{path}: category {number} has no name')
        panoptic = any('segments_info' in annotation for annotation in annotations)
        unused = {'area', 'bbox'} if panoptic else {'bbox'} if set(measured) == {'segm'} else ()
        needed |= {key: check for key, check in _MEASURED.items() if key not in unused}
    for annotation in annotations:
        image_id = annotation['image_id']
        image = images.get(image_id, {})
        for part in annotation.get('segments_info', (annotation,)):
            values = {**part, 'image_id': image_id}
            misfits = (key for key, (fits, _) in needed.items() if not fits(values.get(key)))
            if (key := next(misfits, None)) is not None:
                problem = f'has {key} {_short(values.get(key))}, not {needed[key][1]}'
            else:
                problem = _problem_of_mask(part, image, encode) if masks and image else None
            if problem:
                raise BadDataError(
                    f'annotation {_short(part.get("id"))} of image '
                    f'{image.get("file_name", _short(image_id))} {problem}. Correct {path}, or '
                    'remove the annotation'
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBER)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


# A test of a value, and a description of valid ones.
_Check = tuple[Callable[[Any], bool], str]

# Values of annotations that make metrics fail after the last image.
_MEASURED: dict[str, _Check] = dict(
    id=(_is_number, 'a number'),
    iscrowd=(lambda value: value in range(256), '0 or 1'),
    area=(_is_number, 'a number'),
    bbox=(_is_box, 'four numbers'),
)


def _entries(content: Mapping[str, Any], key: str, path: str) -> tuple[dict[Any, Any], _Check]:
    """Images or categories by id, and the check for their ids: all numbers or all text."""
    entries = {entry['id']: entry for entry in content.get(key) or ()}
    numbers = any(map(_is_number, entries))
    check: _Check = (_is_number, 'a number') if numbers else (lambda one: type(one) is str, 'text')
    if not entries:
        return entries, (lambda one: True, '')
    for one in entries:
        if not check[0](one):
            raise BadDataError(f'{path}: an id of {key} is {_short(one)}, not {check[1]}')
    return entries, check


def _problem_of_mask(part: dict, image: dict, encode: Callable[[dict], Any] | None) -> str | None:
    mask = part.get('segmentation')
    problem = _problem_of_shape(mask, (image.get('height'), image.get('width')))
    if not problem and encode:
        try:
            encode(part)
        except Exception as error:  # KeyError, IndexError, TypeError ...
            problem = one_line(error)
    return problem and f"has an invalid mask, 'segmentation' is {_short(mask)}: {problem}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'


def _problem_of_shape(mask: Any, hw: tuple[Any, Any]) -> str | None:
    """Why pycocotools would hang on a mask, or None; other errors it reports itself."""
    if isinstance(mask, dict):
        return _problem_of_runs(mask, hw)
    if isinstance(mask, list) and not sum(map(_bound, mask)) <= _LONGEST:
        if not sum(map(_outline, mask)) <= _LONGEST:
            return f'its outline must be finite and at most {_LONGEST:.0e} pixels long'
    return None


def _problem_of_runs(mask: dict[str, Any], hw: tuple[Any, Any]) -> str | None:
    size, counts = mask.get('size'), mask.get('counts')
    if not all(map(_is_count, hw)):
        return f'the image must have a height and a width, got {hw[0]!r} and {hw[1]!r}'
    if size != list(hw):
        return f"'size' must be the image's, {list(hw)}"
    if isinstance(counts, str):
        counts = run_lengths(counts)
    if not isinstance(counts, list) or not all(map(_is_count, counts)):
        return "'counts' must be non-negative integers, as a list or in COCO's packed format"
    if sum(counts) != math.prod(hw):
        return f"'counts' add up to {sum(counts)} pixels, but the image has {math.prod(hw)}"
    return None


def _is_count(run: Any) -> bool:
    return isinstance(run, _NUMBER) and run >= 0 and run == run // 1


def run_lengths(text: str) -> list[int] | None:
    """Decode the runs of a packed mask: 5 bits and a continuation bit per character.

    Returns:
        Lengths in pixels, alternating outside and inside, negative if the text is wrong; None if it
        is not in this format.
    """
    runs: list[int] = []
    run = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:  # a run has at most 32 bits
            return None
        run |= (code & 31) << shift
        shift += 5
        if not code & 32:
            run -= (code & 16 > 0) << shift
            # From the fourth on, stored as the difference to the second last.
            runs.append(run + runs[-2] if len(runs) > 2 else run)
            run = shift = 0
    return None if shift else runs


def _bound(polygon: Any) -> float:
    """Upper bound of a polygon's outline in pixels, cheaper than the outline."""
    try:
        far = max(map(abs, (min(polygon), max(polygon))))
        return far * len(polygon) if math.isfinite(sum(polygon)) else math.inf
    except (TypeError, ValueError, OverflowError):
        return math.inf


def _outline(polygon: Any) -> float:
    """Length of a polygon's outline in pixels; 0 for what pycocotools refuses itself."""
    try:
        values = np.array(polygon, float)  # accepts text and None, like pycocotools
    except (TypeError, ValueError, OverflowError):
        return 0.0
    if values.ndim != 1 or values.size < 2:
        return 0.0
    if not np.isfinite(values).all():
        return math.inf
    # In fifths of pixels, clipped to 32 bits, like pycocotools.
    corners = np.clip(values[: len(values) // 2 * 2] * 5, -(2**31), 2**31 - 1).reshape(-1, 2)
    steps = np.abs(np.diff(corners, axis=0, append=corners[:1]))
    return float(steps.max(axis=1).sum()) / 5
