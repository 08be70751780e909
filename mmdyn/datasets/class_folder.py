"""Pictures of image classifiers: one folder per class, timm's transforms."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from PIL import Image
from timm.data import ImageNetInfo, create_transform
from torchvision.datasets.folder import find_classes, make_dataset

from mmdyn.pictures import SUFFIXES, as_rgb
from mmdyn.registry import DATASETS, TRANSFORMS
from mmdyn.samples import ClassSample


@DATASETS.register_module()
class ClassFolder(BaseDataset):
    """Pictures in one folder per class, ``data_root/train/CLASS/NAME.jpg``.

    Classes are numbered in the order of their folders' names.

    Args:
        data_root, data_prefix: the folder of the class folders; ``dict(img_path='train')``.
        metainfo: may have ``classes``, names to show instead of the folders'.
        **kwargs: arguments of mmengine's ``BaseDataset``.

    Raises:
        FileNotFoundError: if there are no class folders, or no pictures in one.
        ValueError: if ``metainfo`` names another number of classes.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: Mapping[str, str] = dict(img_path=''),
        metainfo: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        folders, self._numbers = find_classes(os.path.join(data_root, data_prefix['img_path']))
        metainfo = self.metainfo_of(data_root, data_prefix, metainfo)
        if len(metainfo['classes']) != len(folders):
            raise ValueError(
                f'{len(metainfo["classes"])} classes are named, but '
                f'{os.path.join(data_root, data_prefix["img_path"])} has {len(folders)} class '
                "folders: complete the folders, or use type='mmdyn.ClassFolder' without metainfo"
            )
        super().__init__(
            metainfo=metainfo, data_root=data_root, data_prefix=dict(data_prefix), **kwargs
        )

    @classmethod
    def metainfo_of(
        cls,
        data_root: str = '',
        data_prefix: Mapping[str, str] = dict(img_path=''),
        metainfo: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Metainfo of these arguments; without the folder, ``classes`` may be missing."""
        found = cls._load_metainfo(metainfo)
        folder = os.path.join(data_root, data_prefix['img_path'])
        if 'classes' not in found and os.path.isdir(folder):
            found['classes'] = tuple(find_classes(folder)[0])
        return found

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the pictures with their classes."""
        files = make_dataset(self.data_prefix['img_path'], self._numbers, extensions=SUFFIXES)
        return [dict(img_path=path, gt_label=label) for path, label in files]


@DATASETS.register_module()
class ImageNetDataset(ClassFolder):
    """ImageNet-1k: 1000 folders named by WordNet ids, ``train/n01440764`` and so on."""

    how_to_get = (
        'To get ImageNet-1k, register at https://www.image-net.org, download the ILSVRC '
        '2012 training and validation\nimages and unpack them into one folder per class, so that '
        'data/imagenet/train/n01440764 and data/imagenet/val/n01440764 exist.'
    )

    @classmethod
    def _load_metainfo(cls, metainfo: Mapping[str, Any] | None = None) -> dict[str, Any]:
        info = ImageNetInfo('imagenet-1k')
        names = (info.index_to_description(i).partition(',')[0] for i in range(1000))
        return {'classes': tuple(names), **super()._load_metainfo(metainfo)}


@TRANSFORMS.register_module()
class TimmTransform(BaseTransform):
    """timm's augmentation, or resizing and cropping for evaluation.

    The result counts as the picture: predictions and drawings are of the crop.

    Args:
        **options: arguments of ``timm.data.create_transform``, such as ``input_size``,
            ``is_training``, ``auto_augment``, ``crop_pct``. Normalisation, mixing and random
            erasing are the preprocessor's, see :class:`mmdyn.models.ClassifierPreprocessor`.
    """

    def __init__(self, **options: Any) -> None:
        self.apply = create_transform(normalize=False, **options)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Transform ``img``, (h, w, C) BGR of any dtype, to uint8 BGR."""
        rgb = self.apply(Image.fromarray(as_rgb(results['img'])))
        results['img'] = np.ascontiguousarray(rgb.numpy()[::-1].transpose(1, 2, 0))
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class PackClassInputs(BaseTransform):
    """Packs a picture and its label for a classifier."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``inputs``, (C, h, w), and a :class:`mmdyn.samples.ClassSample`."""
        keys = ('img_path', 'ori_shape', 'img_shape')
        sample = ClassSample(metainfo={key: results.get(key) for key in keys})
        if 'gt_label' in results:
            sample.gt_label = torch.tensor(results['gt_label'])
        inputs = torch.from_numpy(results['img'].transpose(2, 0, 1).copy())
        return dict(inputs=inputs, data_samples=sample)
