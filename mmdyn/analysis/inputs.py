"""Pictures as a config's model gets them, one at a time: noise, a folder, its validation set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmdyn.analysis.images import make_noise, sample_class
from mmdyn.engine.data_check import check_data
from mmdyn.engine.loaders import with_named_steps
from mmdyn.engine.model_check import channels_of
from mmdyn.engine.reading import pictures_in, reader_of
from mmdyn.guard import checkpoints_as_data


def noise(cfg: Config, hw: tuple[int, int], seed: int = 0) -> list[dict[str, Any]]:
    """One picture of noise, of exactly this size; no pipeline touches it.

    Args:
        cfg: a whole config.
        hw: (h, w) in pixels.
        seed: of the noise.

    Raises:
        ValueError: if a side is below 1.
    """
    if min(hw) < 1:
        raise ValueError(f'a picture is at least 1 pixel high and wide, got {hw[0]}x{hw[1]}')
    meta = dict(ori_shape=hw, img_shape=hw, pad_shape=hw, scale_factor=(1.0, 1.0), flip=False)
    sample = sample_class(cfg.get('default_scope'))(metainfo=dict(meta, img_id=0))
    return [dict(inputs=make_noise(1, hw, seed, channels_of(cfg)), data_samples=[sample])]


class Pictures(Sequence):
    """Pictures that are read when asked for, each a batch of its own.

    Args:
        read: number to what a host's pipeline packs, ``inputs`` and ``data_samples``.
        size: how many.
    """

    def __init__(self, read: Callable[[int], dict[str, Any]], size: int) -> None:
        self._read = read
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._size:
            raise IndexError(index)
        return {name: [value] for name, value in self._read(index).items()}


def pictures_of_folder(cfg: Config, folder: str) -> Pictures:
    """Every picture in a folder, at any depth, through the config's test pipeline without labels.

    Args:
        cfg: a whole config.
        folder: where they are.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no picture, or the config has no test pipeline.
    """
    reader = reader_of(cfg)
    files = pictures_in(folder, reader)
    return Pictures(lambda i: reader.pack(reader.read(files[i]), i), len(files))


@checkpoints_as_data()
def pictures_of_validation(cfg: Config, count: int) -> Pictures:
    """The first pictures of the config's validation set, through its own pipeline.

    Args:
        cfg: a whole config.
        count: how many.

    Raises:
        FileNotFoundError: if the data are not there.
        ValueError: if the config has no validation set, or it has fewer pictures.
    """
    if cfg.get('val_dataloader') is None:
        raise ValueError(
            'the config has no val_dataloader, so there is no validation set to take pictures '
            'from: give --shape or --images instead of --num-images'
        )
    check_data(cfg, ('val_dataloader',))
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(with_named_steps(cfg.val_dataloader, cfg)['dataset'])
    if not 1 <= count <= len(dataset):
        raise ValueError(
            f'--num-images must lie in 1..{len(dataset)}, the validation set; got {count}'
        )
    return Pictures(lambda i: dataset[i], count)
