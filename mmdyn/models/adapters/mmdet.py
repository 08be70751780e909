"""Detectors of mmdet with a sparse backbone, without a class written for each.

A detector can be adapted if what its ``loss`` and ``predict`` do with the images
goes through ``extract_feat`` alone. That is so for the methods of the classes in
:data:`HOSTS`, and so for every detector that inherits them unchanged; others
(knowledge distillation, GLIP, Grounding DINO, semi-supervised ones …) read the
images in their own way and are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmdet.models
from mmdet.models import (
    RPN,
    BaseDetector,
    DetectionTransformer,
    MaskFormer,
    SingleStageDetector,
    TwoStageDetector,
    TwoStagePanopticSegmentor,
)
from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
from torch import Tensor

from mmdyn.models.adapters.mixin import SparseTrainingMixin
from mmdyn.registry import MODELS

HOSTS = (
    DetectionTransformer,
    MaskFormer,
    RPN,
    SingleStageDetector,
    SingleStageInstanceSegmentor,
    TwoStageDetector,
    TwoStagePanopticSegmentor,
)
"""Classes whose own ``extract_feat``, ``loss`` and ``predict`` were looked at."""


class SparseDetectorMixin(SparseTrainingMixin):
    """Adds decisions to a detector; put it before the host's class.

    Takes the host's arguments and those of
    :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`.
    """

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[Any], rescale: bool = True
    ) -> Sequence[Any]:
        """Predict as the host does; padding is left out of the decisions.

        Args:
            batch_inputs: (B, 3, h, w) batch.
            batch_data_samples: the host's, one per image.
            rescale: whether results are in the original images' pixels.

        Returns:
            The host's samples; their metainfo gains ``kept_fractions``, one number per
            predictor of the backbone, and with a neck that chooses tiles ``kept_tiles``.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        extracted, out = self.extract_sparse(batch_inputs, metas)
        results = super().predict(extracted, batch_data_samples, rescale=rescale)
        kept = zip(*(decision.kept_fraction().tolist() for decision in out.decisions), strict=True)
        for result, fractions in zip(results, kept, strict=True):
            result.set_metainfo(dict(kept_fractions=list(fractions)))
        tiles = getattr(extracted.feats, 'tiles', None)
        if tiles is not None:
            for result, share in zip(results, tiles.decision.kept_fraction().tolist(), strict=True):
                result.set_metainfo(dict(kept_tiles=share))
        return results


def supports(detector: type) -> bool:
    """Whether a detector class reads its images through ``extract_feat`` alone."""
    return all(
        any(getattr(detector, name) is vars(host).get(name) for host in HOSTS)
        for name in ('extract_feat', 'loss', 'predict')
    )


def sparse_detector(detector: type[BaseDetector]) -> type[BaseDetector]:
    """Make and register the class that trains a sparse backbone in a detector.

    Args:
        detector: mmdet's, or one of your own that inherits its ``loss``, ``predict`` and
            ``extract_feat`` from mmdet's.

    Returns:
        The class, ``Dynamic`` and the detector's name, registered as ``mmdyn.Dynamic…``.

    Raises:
        ValueError: if the detector reads its images in its own way.
    """
    if not supports(detector):
        raise ValueError(
            f'{detector.__name__} reads its images in its own way, not through extract_feat alone, '
            'so decisions can neither be made nor trained in it: take another detector (most of '
            'the two-stage, single-stage, MaskFormer and DETR families will do), or a dense '
            'backbone'
        )
    name = f'Dynamic{detector.__name__}'
    doc = f"""mmdet's ``{detector.__name__}`` that trains a sparse backbone.

    Takes the host's arguments and those of
    :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`.
    """
    bases = (SparseDetectorMixin, detector)
    made = type(detector)(name, bases, {'__doc__': doc, '__module__': __name__})
    MODELS.register_module(module=made)
    return made


DETECTORS = {
    cls.__name__: sparse_detector(cls)
    for cls in vars(mmdet.models).values()
    if isinstance(cls, type) and issubclass(cls, BaseDetector) and supports(cls)
}
"""mmdet's own detectors that can be adapted, by their names, and the classes that do it."""

DynamicMaskRCNN = DETECTORS['MaskRCNN']
