"""Pictures to measure a model on: from a folder, a config's validation set, or noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor

from mmdyn.analysis.progress import quietly
from mmdyn.engine.data_check import check_data
from mmdyn.engine.loading import LoadedModel
from mmdyn.engine.reading import Reader, pictures_in, reader_of
from mmdyn.guard import checkpoints_as_data
from mmdyn.pictures import resized

NOISE = 'pictures of generated noise'
# What detectors are usually fed, 800x1333 at the ratio of COCO's pictures, and segmentors.
DEFAULT_SHAPES = dict(mmdet=(800, 1216))
DEFAULT_SHAPE = (512, 512)


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model predicts on.

    Attributes:
        inputs: (B, C, h, w) float, normalised, on the model's device.
        metainfos: of each image, as the host's samples hold them.
        scope: the host's name.
    """

    inputs: Tensor
    metainfos: tuple[dict[str, Any], ...]
    scope: str

    def samples(self) -> list[Any]:
        """The host's data samples, new ones: predictions are written into them."""
        sample = sample_class(self.scope)
        return [sample(metainfo=dict(meta)) for meta in self.metainfos]


def sample_class(scope: str | None) -> type:
    """The data sample of the host that a config's ``default_scope`` names."""
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample

        return DetDataSample
    from mmseg.structures import SegDataSample

    return SegDataSample


def default_shape(cfg: Config) -> tuple[int, int]:
    """The (h, w) in pixels that a config's model is usually run at."""
    size = ((cfg.get('model') or {}).get('data_preprocessor') or {}).get('size')
    if size is not None:
        return (int(size[0]), int(size[1]))
    return DEFAULT_SHAPES.get(cfg.get('default_scope'), DEFAULT_SHAPE)


@checkpoints_as_data()
def find_pictures(cfg: Config, folder: str | None, count: int) -> tuple[list[Path], str]:
    """Choose the pictures to measure on.

    Args:
        cfg: a whole config.
        folder: where to look, at any depth; None = the config's validation set, if it is
            there.
        count: how many at most.

    Returns:
        Files, none where there are none to be had, and what they are, for reports.

    Raises:
        FileNotFoundError: if ``folder`` is none.
        ValueError: if it holds no picture, or one of them can't be read.
    """
    if folder is not None:
        return pictures_in(folder, reader_of(cfg), count), 'pictures of a folder'
    if cfg.get('val_dataloader') is None:
        return [], f'{NOISE} (the config has no validation set)'
    try:
        check_data(cfg, ('val_dataloader',))
    except FileNotFoundError:
        return [], f"{NOISE} (the config's validation set is not there)"
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with quietly():
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    paths = [Path(dataset.get_data_info(i)['img_path']) for i in range(min(count, len(dataset)))]
    reader = reader_of(cfg)
    for path in paths:
        reader.read(path)
    return paths, "pictures of the config's validation set"


def read_picture(reader: Reader, path: Path, shape: tuple[int, int]) -> Tensor:
    """Read a picture and resize it, without regard to its aspect.

    Stretched and not padded: a sparse model leaves padding out, so padded pictures would
    make it look faster than it is on whole ones.

    Args:
        reader: of the model's config.
        path: of the file.
        shape: (h, w) in pixels.

    Returns:
        (C, h, w), uint8 or float32, as the config's pipeline reads it.
    """
    image = resized(reader.read(path).image, shape)
    # torch got to know 16 bits without a sign late.
    image = image if image.dtype == np.uint8 else image.astype(np.float32)
    return torch.from_numpy(image.reshape(*shape, -1)).permute(2, 0, 1)


def make_noise(
    count: int, shape: tuple[int, int], seed: int = 0, channels: int = 3
) -> list[Tensor]:
    """``count`` pictures (C, h, w) uint8 of noise, C = ``channels``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (channels, *shape), dtype=torch.uint8, generator=generator)
        for _ in range(count)
    ]


def make_batches(loaded: LoadedModel, pictures: Sequence[Tensor], batch_size: int) -> list[Batch]:
    """Put pictures of one size into batches, normalised as the model wants them.

    Each picture leads one batch and the next ones follow it, so there are as many
    different batches as pictures.

    Args:
        loaded: the model.
        pictures: (C, h, w), not normalised.
        batch_size: pictures of a batch; taken more than once if there are fewer.
    """
    scope = loaded.cfg.get('default_scope')
    batches = []
    for first in range(len(pictures)):
        around = itertools.islice(itertools.cycle(range(len(pictures))), first, first + batch_size)
        chosen = [pictures[index] for index in around]
        height, width = chosen[0].shape[-2:]
        shape = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        raw = Batch(chosen[0], (shape,) * batch_size, scope)
        data = loaded.model.data_preprocessor(
            dict(inputs=chosen, data_samples=raw.samples()), training=False
        )
        metainfos = tuple(sample.metainfo for sample in data['data_samples'])
        batches.append(Batch(data['inputs'], metainfos, scope))
    return batches
