"""MiniScenes as an mmseg data set that makes its own files on first use."""

from mmengine.dist import is_main_process
from mmseg.datasets import BaseSegDataset

from mmdyn.datasets.scene_renderer import CLASSES, PALETTE
from mmdyn.registry import DATASETS


@DATASETS.register_module()
class MiniScenesDataset(BaseSegDataset):
    """Rendered scenes: four kinds of stuff, and six of things that differ by outline only.

    The folder is built when the list of files is first read, and checked whenever it is
    read again (see :func:`mmdyn.datasets.mini_scenes.build_mini_scenes`); the data sets of
    both splits therefore have to be given the same ``size``, ``train``, ``val`` and
    ``seed``.

    Args:
        split: 'training' or 'validation'.
        data_root: the folder; made if it isn't there.
        size: side of the pictures in pixels.
        train, val: number of scenes in each split.
        seed: other seeds give other scenes.
        **kwargs: arguments of mmseg's ``BaseSegDataset`` (``pipeline``, ``metainfo``,
            ``indices`` ...).

    Raises:
        ValueError: ``split`` is unknown, a number is out of range, or ``data_root`` holds
            anything else than this data set.
    """

    METAINFO = dict(classes=CLASSES, palette=PALETTE)
    # The tools look for files before they build a data set, but not for this one's.
    builds_itself = True

    def __init__(
        self,
        split: str = 'training',
        data_root: str = 'data/mini_scenes',
        size: int = 128,
        train: int = 240,
        val: int = 60,
        seed: int = 0,
        img_suffix: str = '.png',
        seg_map_suffix: str = '.png',
        **kwargs,
    ) -> None:
        if split not in ('training', 'validation'):
            raise ValueError(f"split must be 'training' or 'validation', got {split!r}")
        # Before super(): its constructor reads the list of files.
        self.parameters = dict(size=size, train=train, val=val, seed=seed)
        kwargs.setdefault(
            'data_prefix', dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
        )
        super().__init__(
            data_root=data_root, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Build the folder unless it is there, then list it; see ``BaseSegDataset``."""
        # Not at the top: `python -m mmdyn.datasets.mini_scenes` imports this package first,
        # and would then run a module that is already loaded.
        from mmdyn.datasets.mini_scenes import build_mini_scenes

        build_mini_scenes(self.data_root, progress=is_main_process(), **self.parameters)
        return super().load_data_list()
