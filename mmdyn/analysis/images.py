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
from PIL import Image
from torch import Tensor

from mmdyn.analysis.loading import LoadedModel
from mmdyn.analysis.progress import quietly
from mmdyn.engine.data_check import check_data

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
NOISE = 'pictures of generated noise'
# What detectors are usually fed, 800x1333 at the ratio of COCO's pictures, and segmentors.
DEFAULT_SHAPES = dict(mmdet=(800, 1216))
DEFAULT_SHAPE = (512, 512)


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model predicts on.

    Attributes:
        inputs: (B, 3, h, w) float, normalised, on the model's device.
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
        return pictures_in(folder, count), 'pictures of a folder'
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
    return _readable(paths), "pictures of the config's validation set"


def pictures_in(folder: str | Path, count: int | None = None) -> list[Path]:
    """The first picture files of a folder, at any depth; None = all. Hidden ones are left out.

    Raises:
        FileNotFoundError: if it is none.
        ValueError: if it holds no picture, or one that can't be read.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'{folder} is no folder: --images takes one with pictures in it')
    files = sorted(path for path in Path(folder).rglob('[!.]*') if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f'{folder} holds no picture ({", ".join(SUFFIXES)})')
    return _readable(files[:count])


def _readable(files: list[Path]) -> list[Path]:
    """The same files, once all were read."""
    for file in files:
        try:
            with Image.open(file) as image:
                image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f'{file} is no picture that can be read: {error}. Replace it, or leave it out'
            ) from error
    return files


def read_picture(path: Path, shape: tuple[int, int]) -> Tensor:
    """Read a picture and resize it, without regard to its aspect.

    Stretched and not padded: a sparse model leaves padding out, so padded pictures would
    make it look faster than it is on whole ones.

    Args:
        path: of the file.
        shape: (h, w) in pixels.

    Returns:
        (3, h, w) uint8, blue first, as the hosts' pipelines read it.
    """
    with Image.open(path) as image:
        resized = image.convert('RGB').resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(resized)[..., ::-1].copy()).permute(2, 0, 1)


def make_noise(count: int, shape: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """``count`` pictures (3, h, w) uint8 of noise."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
        for _ in range(count)
    ]


def make_batches(loaded: LoadedModel, pictures: Sequence[Tensor], batch_size: int) -> list[Batch]:
    """Put pictures of one size into batches, normalised as the model wants them.

    Each picture leads one batch and the next ones follow it, so there are as many
    different batches as pictures.

    Args:
        loaded: the model.
        pictures: (3, h, w) uint8, blue first.
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
