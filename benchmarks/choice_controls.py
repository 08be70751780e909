"""Controls for the learned choice: policies that read the labels, or turn the scores around."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.sparsity.decision import Decision
from mmdyn.sparsity.policy import Site, best_of, make_decision


class InvertedPolicy:
    """Keeps the locations with the lowest scores."""

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        return best_of(-log_probs[..., 0].detach(), site.keep_ratio, site)


class OraclePolicy:
    """Keeps the locations where the labels say that the rarest classes are.

    The importance of a location is the mean over its pixels of the inverse frequencies of their
    classes, plus a tenth of that mean over its 3x3 neighbours and a hundredth over 7x7. Call
    :meth:`read` with the labels of each batch before its forward pass, see :meth:`watch`.

    Args:
        class_weights: one per class; see :func:`inverse_frequencies`.
    """

    def __init__(self, class_weights: Sequence[float]) -> None:
        self.class_weights = np.asarray(class_weights, dtype=np.float32)
        self.importance = torch.zeros(0)

    def watch(self, model: nn.Module) -> None:
        """Read the labels of every batch that a host's model gets."""

        def read(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            batch = dict(zip(('inputs', 'data_samples'), args, strict=False)) | kwargs
            self.read(batch['inputs'], batch['data_samples'])

        model.register_forward_pre_hook(read, with_kwargs=True)

    def read(self, inputs: Tensor, data_samples: Sequence[Any]) -> None:
        """Store the importance of every pixel of a batch (B, C, h, w); padding has none."""
        self.importance = inputs.new_zeros(len(inputs), 1, *inputs.shape[-2:])
        for target, sample in zip(self.importance, data_samples, strict=True):
            weights = torch.from_numpy(self._weights(labels_of(sample)))
            # In training labels are padded as the images are; in tests they keep the file's size.
            padded = weights.shape == target.shape[1:]
            height, width = weights.shape if padded else sample.img_shape[:2]
            resized = F.interpolate(weights[None, None], (height, width), mode='area')
            target[:, :height, :width] = resized[0]

    def _weights(self, labels: np.ndarray) -> np.ndarray:
        known = labels < len(self.class_weights)
        return np.where(known, self.class_weights[np.where(known, labels, 0)], 0)

    def worth(self, hw: tuple[int, int]) -> Tensor:
        """(B, N) importance of the locations of an (H, W) map."""
        (height, width), (rows, columns) = self.importance.shape[-2:], hw
        # The last locations of a map may reach beyond the image; strides are powers of 2.
        stride = 2 ** round(math.log2(max(height / rows, width / columns)))
        beyond = (0, columns * stride - width, 0, rows * stride - height)
        wanted = F.avg_pool2d(F.pad(self.importance, beyond), stride)
        for size, weight in ((3, 0.1), (7, 0.01)):
            near = F.avg_pool2d(wanted, size, stride=1, padding=size // 2)
            wanted = wanted + weight * near
        return wanted.flatten(1)

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        scores = log_probs[..., 0]
        best = best_of(self.worth(site.hw), site.keep_ratio, site)
        return make_decision(best.keep_mask > 0, scores.exp(), scores, site, best)


def labels_of(sample: Any) -> np.ndarray:
    """(h, w) class indices of a host's data sample; 1 where a detector's has any instance."""
    if 'gt_sem_seg' in sample:
        return sample.gt_sem_seg.data[0].cpu().numpy()
    masks = sample.gt_instances.masks
    return np.any(masks.masks, axis=0).reshape(masks.height, masks.width).astype(np.int64)


def inverse_frequencies(labels: Sequence[np.ndarray], classes: int) -> list[float]:
    """Inverse frequency of every class in label maps, with a mean of 1."""
    counts = sum(np.bincount(one[one < classes].ravel(), minlength=classes) for one in labels)
    weights = counts.sum() / np.maximum(counts, 1)
    return (weights / weights.mean()).tolist()
