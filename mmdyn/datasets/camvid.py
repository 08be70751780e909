"""CamVid, the Cambridge-driving Labeled Video Database, with the 11 classes of SegNet."""

from collections.abc import Sequence

from mmseg.datasets import BaseSegDataset

from mmdyn.registry import DATASETS

VOID = 11
"""Value of unlabelled pixels in the annotation files."""

IGNORED = 255
"""Value that mmseg's losses and metrics leave out, unless told otherwise."""

_COLOURS = {
    'sky': [128, 128, 128],
    'building': [128, 0, 0],
    'pole': [192, 192, 128],
    'road': [128, 64, 128],
    'pavement': [60, 40, 222],
    'tree': [128, 128, 0],
    'signsymbol': [192, 128, 128],
    'fence': [64, 64, 128],
    'car': [64, 0, 128],
    'pedestrian': [64, 64, 0],
    'bicyclist': [0, 128, 192],
}


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """Street scenes, 480x360; annotations are 8-bit PNG with class indices and 11 for void.

    Void reaches the loss and the metrics as 255, mmseg's default ``ignore_index``: it is
    part of the label map that mmseg's ``LoadAnnotations`` applies, so no pipeline, loss or
    metric has to be told about it. The files stay as they are.

    Expected layout, with ``data_prefix=dict(img_path='images/train',
    seg_map_path='annotations/train')``, and ``val`` alike::

        data_root/images/{train,val}/*.jpg
        data_root/annotations/{train,val}/*.png

    The folders of the SegNet tutorial serve too: ``img_suffix='.png'`` and
    ``data_prefix=dict(img_path='train', seg_map_path='trainannot')``.

    Args:
        img_suffix, seg_map_suffix: file name endings.
        **kwargs: arguments of mmseg's ``BaseSegDataset``.
    """

    METAINFO = dict(classes=tuple(_COLOURS), palette=list(_COLOURS.values()))

    def __init__(self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """Map from the files' values to training labels; void is always ignored.

        Args:
            new_classes: a subset of the classes to learn, from ``metainfo``.
        """
        return {**(super().get_label_map(new_classes) or {}), VOID: IGNORED}
