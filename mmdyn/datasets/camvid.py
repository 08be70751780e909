"""CamVid, the Cambridge-driving Labeled Video Database, with the 11 classes of SegNet."""

from collections.abc import Sequence

from mmseg.datasets import BaseSegDataset

from mmdyn.registry import DATASETS

VOID = 11
"""Label of unlabelled pixels in the annotation files."""

IGNORED = 255
"""Default ``ignore_index`` of mmseg's losses and metrics."""

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

    Void becomes 255, mmseg's default ``ignore_index``, through the label map that mmseg's
    ``LoadAnnotations`` applies: pipelines, losses and metrics need no settings for it, and the
    files are not changed.

    Expected layout, with ``data_prefix=dict(img_path='images/train',
    seg_map_path='annotations/train')``, and likewise for ``val``::

        data_root/images/{train,val}/*.jpg
        data_root/annotations/{train,val}/*.png

    The folders of the SegNet tutorial work as well: ``img_suffix='.png'`` and
    ``data_prefix=dict(img_path='train', seg_map_path='trainannot')``.

    Args:
        img_suffix, seg_map_suffix: file name suffixes.
        **kwargs: of mmseg's ``BaseSegDataset``.
    """

    METAINFO = dict(classes=tuple(_COLOURS), palette=list(_COLOURS.values()))

    def __init__(self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """Map labels of the files to training labels; void is always ignored.

        Args:
            new_classes: subset of the classes to learn, from ``metainfo``.
        """
        return {**(super().get_label_map(new_classes) or {}), VOID: IGNORED}
