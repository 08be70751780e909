"""A data pipeline whose errors name the file."""

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
    """Runs the steps of a pipeline and checks labels; errors name the sample's files.

    The tools wrap the pipelines of a config in it, see :mod:`mmdyn.engine.loaders`.

    Args:
        transforms: the steps.
        num_classes: of the data set; labels must be below it. None = unchecked.
        ignored: labels of ignored pixels.

    Raises:
        mmdyn.errors.BadDataError: when called on an unusable sample.
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
        """Run the steps on a sample; None if a step returns it, as in mmengine."""
        files = [str(data[key]) for key in _PATHS if data.get(key)]
        for file in filter(os.path.isfile, files):
            try:
                refuse_postscript(file)
            except OSError as error:
                raise BadDataError(f"{file} can't be used: {one_line(error)}") from error
        for step in self.transforms:
            # Checked last, as a step may convert labels.
            if _is_pack(step):
                self._check_labels(data)
            try:
                result = step(data)
            except Exception as error:  # decoders raise various errors
                raise BadDataError(
                    f"{' with '.join(files) or 'a sample without a path'} can't be used: "
                    f'{type(step).__name__} of the pipeline failed: {one_line(error)}. Repair the '
                    'file or its annotations, remove it from the data set, or change the step'
                ) from error
            if result is None:
                return None
            data = result
        # Pipelines below a wrapper that mixes samples, such as Mosaic's, have no packing step.
        if not self._packs and isinstance(data, dict):
            self._check_labels(data)
        return data

    def _check_labels(self, data: dict[str, Any]) -> None:
        """Refuse invalid label maps, sizes that differ from the picture's, and unknown labels."""
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
                f'{path} is not a label map, its pixels have {labels.shape[2]} channels: save '
                'labels as a picture with one channel (grey or palette)'
            )
        # In tests the picture is resized, the labels are not.
        if shape is not None and labels.shape not in (tuple(shape[:2]), data['img'].shape[:2]):
            raise BadDataError(
                f'{path} has {labels.shape[1]}x{labels.shape[0]} pixels, but its picture '
                f'{data.get("img_path")} {shape[1]}x{shape[0]}: replace one of them, or remove '
                'both from the data set'
            )
        if self.num_classes is None or not np.issubdtype(labels.dtype, np.integer):
            return
        strange = (labels >= self.num_classes) | (labels < 0)
        wrong = labels[strange & ~np.isin(labels, self.ignored)]
        if wrong.size:
            ignored = ', '.join(map(str, self.ignored))
            raise BadDataError(
                f'{path} has label {wrong.flat[0]} in {wrong.size} pixels, but the data set has '
                f'{self.num_classes} classes, labels 0 to {self.num_classes - 1} (and {ignored} '
                "for ignored pixels): correct the file, or the data set's metainfo (classes) and "
                'reduce_zero_label'
            )


def _is_pack(step: Any) -> bool:
    return type(step).__name__.startswith('Pack')


def _is_mmsegs_reader(step: Any) -> bool:
    kind = type(step)
    return kind.__name__ == 'LoadAnnotations' and kind.__module__.startswith('mmseg.')


def _check_depth(path: str | None, ignored: Sequence[int]) -> None:
    """Refuse labels above 255: mmseg keeps 8 bits of each and would read 256 as 0.

    65535 becomes 255 and is ignored, so it is allowed.
    """
    if path is None or not os.path.isfile(path):  # not a local file
        return
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if not picture.mode.startswith(('I', 'F')):
                return
            labels = np.asarray(picture).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return  # a format or size for another reader
    wrong = labels[(labels > 255) & ~np.isin(labels & 255, ignored)]
    if wrong.size:
        raise BadDataError(
            f'{path} has label {wrong.flat[0]}, but labels are read as 8 bits: use labels from 0 '
            'to 254 for classes, and 255 for ignored pixels'
        )
