"""What MiniScenes are to any host: a folder that is built when it is first read."""

from abc import ABC, abstractmethod
from typing import Any

from mmengine.dist import is_main_process


class MiniScenesFolder(ABC):
    """Builds and checks the folder; put it before a host's data set class.

    The folder is built when the list of files is first read, and checked whenever it is
    read again (see ``mmdyn.datasets.mini_scenes.build_mini_scenes``); the data sets of
    both splits therefore have to be given the same ``size``, ``train``, ``val`` and
    ``seed``.

    Args:
        split: 'training' or 'validation'.
        data_root: the folder; made if it isn't there.
        size: side of the pictures in pixels.
        train, val: number of scenes in each split.
        seed: other seeds give other scenes.
        **kwargs: arguments of the host's class.

    Raises:
        ValueError: ``split`` is unknown, a number is out of range, or ``data_root`` holds
            anything else than this data set.
    """

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
        **kwargs: Any,
    ) -> None:
        if split not in ('training', 'validation'):
            raise ValueError(f"split must be 'training' or 'validation', got {split!r}")
        # Before super(): its constructor reads the list of files.
        self.parameters = dict(size=size, train=train, val=val, seed=seed)
        super().__init__(data_root=data_root, **{**self.paths(split), **kwargs})

    @staticmethod
    @abstractmethod
    def paths(split: str) -> dict[str, Any]:
        """Where a split lies below the folder, as arguments of the host's class."""

    def load_data_list(self) -> list[dict]:
        """Build the folder unless it is there, then list it as the host does."""
        # Not at the top: `python -m mmdyn.datasets.mini_scenes` imports this package first,
        # and would then run a module that is already loaded.
        from mmdyn.datasets.mini_scenes import build_mini_scenes

        build_mini_scenes(self.data_root, progress=is_main_process(), **self.parameters)
        return super().load_data_list()
