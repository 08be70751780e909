"""MiniScenes as data sets of the installed hosts."""

from typing import Any

from mmengine.dist import is_main_process

from mmdyn.compat import has_host
from mmdyn.datasets.mini_scenes import SPLITS, build_mini_scenes
from mmdyn.datasets.scene_renderer import CLASSES, PALETTE, STUFF_CLASSES, THING_CLASSES
from mmdyn.registry import DATASETS


class MiniScenesFolder:
    """Builds and checks the folder; put it before a host's data set class.

    The folder is built or checked when the list of files is read (see
    ``mmdyn.datasets.mini_scenes.build_mini_scenes``), so the data sets of both splits need the same
    ``size``, ``train``, ``val`` and ``seed``.

    Args:
        split: 'training' or 'validation'.
        data_root: the folder; created if necessary.
        size: side of the pictures in pixels.
        train, val: number of scenes in each split.
        seed: determines the scenes.
        **kwargs: of the host's class.

    Raises:
        ValueError: if ``split`` is unknown, a number is out of range, or ``data_root`` is another
            data set.
    """

    # The tools don't check for files of this data set, as it generates them.
    builds_itself = True

    def __init__(
        self,
        split: str = 'training',
        data_root: str = 'data/mini_scenes',
        size: int = 128,
        train: int = 240,
        val: int = 60,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
        # Before super(): its constructor reads the list of files.
        self.parameters = dict(size=size, train=train, val=val, seed=seed)
        super().__init__(data_root=data_root, **{**self.paths(split), **kwargs})

    @staticmethod
    def paths(split: str) -> dict[str, Any]:
        """Paths of a split below the folder, as arguments of the host's class."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict]:
        """Build the folder unless it is there, then list it like the host."""
        build_mini_scenes(self.data_root, progress=is_main_process(), **self.parameters)
        return super().load_data_list()


if has_host('mmseg'):
    from mmseg.datasets import BaseSegDataset

    @DATASETS.register_module()
    class MiniScenesDataset(MiniScenesFolder, BaseSegDataset):
        """Rendered scenes for mmseg: four kinds of stuff, and six things that differ by outline.

        Takes the arguments of
        :class:`mmdyn.datasets.mini_scenes_datasets.MiniScenesFolder` and ``BaseSegDataset``.
        """

        METAINFO = dict(classes=CLASSES, palette=PALETTE)

        @staticmethod
        def paths(split: str) -> dict[str, Any]:
            """See ``MiniScenesFolder``."""
            prefix = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
            return dict(data_prefix=prefix, img_suffix='.png', seg_map_suffix='.png')


if has_host('mmdet'):
    from mmdet.datasets import CocoDataset

    @DATASETS.register_module()
    class MiniScenesInstanceDataset(MiniScenesFolder, CocoDataset):
        """The things of the rendered scenes for mmdet, with masks.

        Takes the arguments of
        :class:`mmdyn.datasets.mini_scenes_datasets.MiniScenesFolder` and ``CocoDataset``.
        """

        METAINFO = dict(
            classes=THING_CLASSES,
            palette=[tuple(colour) for colour in PALETTE[len(STUFF_CLASSES) :]],
        )

        @staticmethod
        def paths(split: str) -> dict[str, Any]:
            """See ``MiniScenesFolder``."""
            prefix = dict(img=f'images/{split}')
            return dict(ann_file=f'instances_{split}.json', data_prefix=prefix)
