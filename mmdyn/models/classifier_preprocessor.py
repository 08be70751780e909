"""Normalises, mixes and erases the pictures of a classifier."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import ImgDataPreprocessor
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing

from mmdyn.registry import MODELS


@MODELS.register_module()
class ClassifierPreprocessor(ImgDataPreprocessor):
    """mmengine's preprocessor with timm's Mixup, CutMix and random erasing in training.

    Args:
        args, kwargs: of ``ImgDataPreprocessor``.
        mixing: arguments of ``timm.data.Mixup``, of which a classifier sets ``num_classes``; None =
            none.
        erasing: probability that a picture has a rectangle replaced by noise.
    """

    def __init__(
        self, *args: Any, mixing: dict | None = None, erasing: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mix = None if mixing is None else Mixup(**mixing)
        self.erase = RandomErasing(erasing, mode='pixel', device='cpu') if erasing else None

    def forward(self, data: dict, training: bool = False) -> dict:
        """Preprocess a batch.

        Raises:
            ValueError: if an odd number of pictures is to be mixed.
        """
        data = super().forward(data, training)
        if not training:
            return data
        images, samples = data['inputs'], data['data_samples']
        if self.erase is not None:
            self.erase.device = images.device
            images = self.erase(images)
        if self.mix is not None:
            if len(images) % 2:
                raise ValueError(
                    f'Mixup mixes pairs, got a batch of {len(images)}: use an even batch_size and '
                    'train_dataloader.drop_last=True'
                )
            labels = torch.stack([sample.gt_label for sample in samples])
            images, mixed = self.mix(images, labels)
            for sample, score in zip(samples, mixed, strict=True):
                sample.gt_score = score
        return data | dict(inputs=images, data_samples=samples)
