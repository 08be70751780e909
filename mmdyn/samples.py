"""The data sample of image classifiers."""

from __future__ import annotations

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


class ClassSample(BaseDataElement):
    """Label and prediction of an image.

    Attributes:
        gt_label: () int64, class of the image.
        gt_score: (K,) float, probabilities to learn instead, of mixed images.
        pred_score: (K,) float, predicted probabilities.
    """

    @property
    def pred_label(self) -> int:
        """The most probable class."""
        return int(self.pred_score.argmax())


def targets_of(samples: list[ClassSample], device: torch.device) -> Tensor:
    """(B,) int64 labels, or (B, K) float probabilities where images are mixed."""
    name = 'gt_score' if 'gt_score' in samples[0] else 'gt_label'
    return torch.stack([torch.as_tensor(sample.get(name)) for sample in samples]).to(device)
