"""MiniScenes as an mmseg data set."""

from typing import Any

from mmseg.datasets import BaseSegDataset

from mmdyn.datasets.mini_scenes_folder import MiniScenesFolder
from mmdyn.datasets.scene_renderer import CLASSES, PALETTE
from mmdyn.registry import DATASETS


@DATASETS.register_module()
class MiniScenesDataset(MiniScenesFolder, BaseSegDataset):
    """Rendered scenes: four kinds of stuff, and six of things that differ by outline only.

    Takes the arguments of :class:`mmdyn.datasets.mini_scenes_folder.MiniScenesFolder` and
    those of mmseg's ``BaseSegDataset`` (``pipeline``, ``metainfo``, ``indices`` ...).
    """

    METAINFO = dict(classes=CLASSES, palette=PALETTE)

    @staticmethod
    def paths(split: str) -> dict[str, Any]:
        """See :class:`mmdyn.datasets.mini_scenes_folder.MiniScenesFolder`."""
        prefix = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
        return dict(data_prefix=prefix, img_suffix='.png', seg_map_suffix='.png')
