"""Detectors of mmdet with a sparse backbone, derived from the host's classes.

A detector can be adapted if it inherits ``METHODS`` unchanged, which touch the images only through
``extract_feat``. Others (knowledge distillation, GLIP, Grounding DINO, semi-supervised …) read the
images directly and are refused by name.
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

from mmdyn.models.adapters.mixin import SparseTrainingMixin, derive, supports
from mmdyn.registry import MODELS


class SparseDetectorMixin(SparseTrainingMixin):
    """Adds decisions to a detector; put it before the host's class.

    Takes the host's arguments and those of
    :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`.
    """

    HOSTS = (
        DetectionTransformer,
        MaskFormer,
        RPN,
        SingleStageDetector,
        SingleStageInstanceSegmentor,
        TwoStageDetector,
        TwoStagePanopticSegmentor,
    )
    METHODS = ('extract_feat', 'loss', 'predict')
    OTHERS = 'most of the two-stage, single-stage, MaskFormer and DETR families'

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[Any], rescale: bool = True
    ) -> Sequence[Any]:
        """Predict like the host, ignoring padding in the decisions.

        Returns:
            The host's samples, with ``kept_fractions`` in the metainfo, one number per predictor of
            the backbone, and ``kept_tiles`` with a neck that chooses tiles.
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


DETECTORS = {
    cls.__name__: MODELS.register_module(module=derive(cls, SparseDetectorMixin))
    for cls in vars(mmdet.models).values()
    if isinstance(cls, type)
    and issubclass(cls, BaseDetector)
    and supports(cls, SparseDetectorMixin)
}
"""Adapters by the names of mmdet's detectors."""

DynamicMaskRCNN = DETECTORS['MaskRCNN']
