"""Nuclei in microscopy pictures: the 2018 Data Science Bowl's stage-1 training set, CC0."""

from mmseg.datasets import BaseSegDataset

from mmdyn.registry import DATASETS


@DATASETS.register_module()
class NucleiDataset(BaseSegDataset):
    """Nuclei and their borders, 256x256 to 1040x1388 pixels.

    Annotations are 8-bit PNG with class indices; the border is one pixel wide, inside a nucleus.
    Expected layout, with ``data_prefix=dict(img_path='images/train',
    seg_map_path='annotations/train')``, and ``val`` alike::

        data_root/images/{train,val}/*.jpg
        data_root/annotations/{train,val}/*.png

    Args:
        img_suffix, seg_map_suffix: file name endings.
        **kwargs: arguments of mmseg's ``BaseSegDataset``.
    """

    METAINFO = dict(
        classes=('background', 'nucleus', 'border'),
        palette=[[0, 0, 0], [80, 160, 255], [255, 200, 0]],
    )

    def __init__(self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
