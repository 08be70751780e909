"""A data pipeline whose errors name the file they are about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from PIL import Image

from mmdyn.errors import BadDataError, one_line
from mmdyn.pictures import FORMATS, refuse_postscript
from mmdyn.registry import TRANSFORMS

_PATHS = ('img_path', 'seg_map_path')


@TRANSFORMS.register_module()
class NamedSteps(Compose):
    """Runs a pipeline's steps and checks labels; errors name the sample's files.

    The tools wrap the pipelines of a config in it, see :mod:`mmdyn.engine.loaders`.

    Args:
        transforms: the steps.
        num_classes: of the data set; pixels of a label map must be below it. None = any.
        ignored: labels of pixels that don't count.

    Raises:
        mmdyn.errors.BadDataError: when called on a sample that can't be used.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        num_classes: int | None = None,
        ignored: Sequence[int] = (255,),
    ) -> None:
        super().__init__(transforms)
        self.num_classes = num_classes
        self.ignored = tuple(ignored)
        self._packs = any(map(_is_pack, self.transforms))
        self._reads_pictures = any(map(_is_mmsegs_reader, self.transforms))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Runs the steps on one sample; None if one of them returns it, as in mmengine."""
        files = [str(data[key]) for key in _PATHS if data.get(key)]
        for file in filter(os.path.isfile, files):
            try:
                refuse_postscript(file)
            except OSError as error:
                raise BadDataError(f"{file} can't be used: {one_line(error)}") from error
        for step in self.transforms:
            # Last: a pipeline may turn what it loads into labels.
            if _is_pack(step):
                self._check_labels(data)
            try:
                result = step(data)
            except Exception as error:  # decoders raise whatever they stumble over
                raise BadDataError(
                    f"{' with '.join(files) or 'a sample without a path'} can't be used, "
                    f'{type(step).__name__} of the pipeline failed: {one_line(error)}. Repair the '
                    'file or its annotations, leave it out of the data set, or change the step'
                ) from error
            if result is None:
                return None
            data = result
        # Without a packing step below a wrapper that mixes samples, such as Mosaic's.
        if not self._packs and isinstance(data, dict):
            self._check_labels(data)
        return data

    def _check_labels(self, data: dict[str, Any]) -> None:
        """Refuse what is no label map, of another size than its picture, or with other labels."""
        labels = data.get('gt_seg_map')
        if labels is None:
            return
        path, shape = data.get('seg_map_path'), data.get('ori_shape')
        if self._reads_pictures:
            _check_depth(path, self.ignored)
        if labels.ndim != 2:
            if labels.ndim != 3 or labels.shape[2] > 4:  # a volume
                return
            raise BadDataError(
                f'{path} is no label map, its pixels have {labels.shape[2]} channels: save labels '
                'as a picture of one channel (grey or palette)'
            )
        # Beside a test's resized picture lie the labels of the one in the file.
        if shape is not None and labels.shape not in (tuple(shape[:2]), data['img'].shape[:2]):
            raise BadDataError(
                f'{path} has {labels.shape[1]}x{labels.shape[0]} pixels and its picture '
                f'{data.get("img_path")} {shape[1]}x{shape[0]}: replace one of them, or leave both '
                'out of the data set'
            )
        if self.num_classes is None or not np.issubdtype(labels.dtype, np.integer):
            return
        strange = (labels >= self.num_classes) | (labels < 0)
        wrong = labels[strange & ~np.isin(labels, self.ignored)]
        if wrong.size:
            ignored = ', '.join(map(str, self.ignored))
            raise BadDataError(
                f'{path} has label {wrong.flat[0]} in {wrong.size} pixels, and the data set has '
                f'{self.num_classes} classes, labels 0 to {self.num_classes - 1} (and {ignored} '
                "for what is ignored): correct the file, or the data set's metainfo (classes) and "
                'reduce_zero_label'
            )


def _is_pack(step: Any) -> bool:
    return type(step).__name__.startswith('Pack')


def _is_mmsegs_reader(step: Any) -> bool:
    kind = type(step)
    return kind.__name__ == 'LoadAnnotations' and kind.__module__.startswith('mmseg.')


def _check_depth(path: str | None, ignored: Sequence[int]) -> None:
    """Refuse labels above 255: mmseg keeps 8 bits of each and would read 256 as 0.

    65535 becomes 255, which is ignored, and may stay.
    """
    if path is None or not os.path.isfile(path):  # in another storage
        return
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if not picture.mode.startswith(('I', 'F')):
                return
            labels = np.asarray(picture).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return  # a format, or a size, of another reader
    wrong = labels[(labels > 255) & ~np.isin(labels & 255, ignored)]
    if wrong.size:
        raise BadDataError(
            f'{path} has label {wrong.flat[0]}, and labels are read as 8 bits: give the classes '
            'numbers from 0 to 254, and 255 to what is ignored'
        )
