"""MiniScenes as an mmdet data set."""

from typing import Any

from mmdet.datasets import CocoDataset

from mmdyn.datasets.mini_scenes_folder import MiniScenesFolder
from mmdyn.datasets.scene_renderer import PALETTE, STUFF_CLASSES, THING_CLASSES
from mmdyn.registry import DATASETS


@DATASETS.register_module()
class MiniScenesInstanceDataset(MiniScenesFolder, CocoDataset):
    """The things of the rendered scenes: six kinds that differ by outline only, with masks.

    Takes the arguments of :class:`mmdyn.datasets.mini_scenes_folder.MiniScenesFolder` and
    those of mmdet's ``CocoDataset`` (``pipeline``, ``filter_cfg``, ``indices`` ...).
    """

    METAINFO = dict(
        classes=THING_CLASSES,
        palette=[tuple(colour) for colour in PALETTE[len(STUFF_CLASSES) :]],
    )

    @staticmethod
    def paths(split: str) -> dict[str, Any]:
        """See :class:`mmdyn.datasets.mini_scenes_folder.MiniScenesFolder`."""
        return dict(ann_file=f'instances_{split}.json', data_prefix=dict(img=f'images/{split}'))
