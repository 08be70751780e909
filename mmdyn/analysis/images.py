"""Pictures to measure on: from a folder, a config's validation set, or noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import to_2tuple
from torch import Tensor

from mmdyn.analysis.progress import quietly
from mmdyn.engine.data_check import check_data, leaf_datasets
from mmdyn.engine.loaders import with_named_steps
from mmdyn.engine.loading import LoadedModel
from mmdyn.engine.model_check import channels_of, preprocessor_of
from mmdyn.engine.picture_reader import pictures_in, reader_of
from mmdyn.guard import checkpoints_as_data
from mmdyn.samples import ClassSample

NOISE = 'pictures of generated noise'


@dataclass(frozen=True, eq=False)
class HostBatch:
    """Input of a model.

    Attributes:
        inputs: (B, C, h, w) float, normalised, on the model's device.
        metainfos: of each image, as in the host's samples.
        scope: name of the host.
    """

    inputs: Tensor
    metainfos: tuple[dict[str, Any], ...]
    scope: str

    def samples(self) -> list[Any]:
        """New data samples of the host, as predictions are written into them."""
        sample = sample_class(self.scope)
        return [sample(metainfo=dict(meta)) for meta in self.metainfos]


def sample_class(scope: str | None) -> type:
    """Data sample class of the host for a config's ``default_scope``."""
    if scope == 'mmdyn':
        return ClassSample
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample

        return DetDataSample
    from mmseg.structures import SegDataSample

    return SegDataSample


def default_shape(cfg: Config) -> tuple[int, int]:
    """The usual input size (h, w) in pixels of a config's model."""
    size = preprocessor_of(cfg).get('size')
    if size is not None:
        return (int(size[0]), int(size[1]))
    if cfg.get('default_scope') == 'mmdyn':  # that of the test pipeline
        leaves = [leaf for _, leaf in leaf_datasets(cfg.get('test_dataloader'))]
        steps = [step for leaf in leaves for step in leaf.get('pipeline', ())]
        sizes = [step['input_size'] for step in steps if 'input_size' in step]
        return to_2tuple(sizes[0] if sizes else 224)
    # The usual 800x1333 of detectors at the aspect ratio of COCO's pictures.
    return (800, 1216) if cfg.get('default_scope') == 'mmdet' else (512, 512)


@checkpoints_as_data()
def find_pictures(cfg: Config, folder: str | None, count: int) -> tuple[list[Path], str]:
    """Choose the pictures to measure on.

        cfg: a whole config.
        folder: searched at any depth; None = the config's validation set.
        count: maximum number.

    Returns:
        Files (none if not available), and a description for reports.

    Raises:
        FileNotFoundError: if ``folder`` does not exist.
        ValueError: if it has no picture, or one of them can't be read.
    """
    if folder is not None:
        return pictures_in(folder, reader_of(cfg), count), 'pictures of a folder'
    if cfg.get('val_dataloader') is None:
        return [], f'{NOISE} (the config has no validation set)'
    try:
        dataset = _validation_set(cfg)
    except FileNotFoundError:
        return [], f"{NOISE} (the config's validation set was not found)"
    paths = [Path(dataset.get_data_info(i)['img_path']) for i in range(min(count, len(dataset)))]
    reader = reader_of(cfg)
    for path in paths:
        reader.read(path)
    return paths, "pictures of the config's validation set"


def _validation_set(cfg: Config) -> Any:
    """Build the config's validation set, checking its files."""
    check_data(cfg, ('val_dataloader',))
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with quietly():
        return DATASETS.build(with_named_steps(cfg.val_dataloader, cfg)['dataset'])


def make_noise(
    count: int, shape: tuple[int, int], seed: int = 0, channels: int = 3
) -> list[Tensor]:
    """``count`` pictures of noise, (``channels``, h, w) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (channels, *shape), dtype=torch.uint8, generator=generator)
        for _ in range(count)
    ]


def as_picture(rgb: np.ndarray) -> Tensor:
    """(h, w, 3) RGB -> (3, h, w) BGR, as mmcv reads files."""
    return torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)


def host_batch(loaded: LoadedModel, packed: dict[str, Any]) -> HostBatch:
    """Preprocess a batch packed by a host's loader."""
    data = loaded.model.data_preprocessor(packed, training=False)
    metainfos = tuple(sample.metainfo for sample in data['data_samples'])
    return HostBatch(data['inputs'], metainfos, loaded.cfg.get('default_scope'))


def make_batches(
    loaded: LoadedModel, pictures: Sequence[Tensor], batch_size: int
) -> list[HostBatch]:
    """Make normalised batches of (C, h, w) pictures of one size.

    Each picture starts one batch and the next ones follow, so there are as many different batches
    as pictures. With fewer pictures than ``batch_size`` they repeat.
    """
    scope = loaded.cfg.get('default_scope')
    batches = []
    for first in range(len(pictures)):
        around = itertools.islice(itertools.cycle(range(len(pictures))), first, first + batch_size)
        chosen = [pictures[index] for index in around]
        height, width = chosen[0].shape[-2:]
        shape = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        raw = HostBatch(chosen[0], (shape,) * batch_size, scope)
        batches.append(host_batch(loaded, dict(inputs=chosen, data_samples=raw.samples())))
    return batches


class Samples(Sequence):
    """Pictures packed by a host's pipeline on access, in batches of one.

    Args:
        pack: returns ``inputs`` and ``data_samples`` of an index.
        size: number of pictures.
    """

    def __init__(self, pack: Callable[[int], dict[str, Any]], size: int) -> None:
        self._pack, self._size = pack, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._size:
            raise IndexError(index)
        return {name: [value] for name, value in self._pack(index).items()}


def noise_samples(cfg: Config, hw: tuple[int, int], seed: int = 0) -> Samples:
    """One picture of noise of size (h, w), without a pipeline.

    Raises:
        ValueError: if a side is below 1.
    """
    if min(hw) < 1:
        raise ValueError(f'a picture must be at least 1x1 pixel, got {hw[0]}x{hw[1]}')
    meta = dict(ori_shape=hw, img_shape=hw, pad_shape=hw, scale_factor=(1.0, 1.0), flip=False)
    sample = sample_class(cfg.get('default_scope'))(metainfo=dict(meta, img_id=0))
    (inputs,) = make_noise(1, hw, seed, channels_of(cfg))
    return Samples(lambda _: dict(inputs=inputs, data_samples=sample), 1)


def folder_samples(cfg: Config, folder: str) -> Samples:
    """Pictures in a folder, at any depth, through the config's test pipeline without labels.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no picture, or the config has no test pipeline.
    """
    reader = reader_of(cfg)
    files = pictures_in(folder, reader)
    return Samples(lambda i: reader.pack(reader.read(files[i]), i), len(files))


@checkpoints_as_data()
def validation_samples(cfg: Config, count: int) -> Samples:
    """The first ``count`` pictures of the config's validation set, through its pipeline.

    Raises:
        FileNotFoundError: if data are missing.
        ValueError: if the config has no validation set, or it has fewer pictures.
    """
    if cfg.get('val_dataloader') is None:
        raise ValueError(
            'the config has no val_dataloader to take pictures from: give --shape or --images '
            'instead of --num-images'
        )
    dataset = _validation_set(cfg)
    if not 1 <= count <= len(dataset):
        raise ValueError(
            f'--num-images must be in 1..{len(dataset)} (the validation set), got {count}'
        )
    return Samples(lambda i: dataset[i], count)
