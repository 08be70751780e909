"""Segmentors of mmseg with a sparse backbone."""

from __future__ import annotations

import torch
from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from mmdyn.models.adapters.mixin import SparseTrainingMixin
from mmdyn.registry import MODELS


@MODELS.register_module()
class DynamicEncoderDecoder(SparseTrainingMixin, EncoderDecoder):
    """mmseg's ``EncoderDecoder`` that trains a sparse backbone.

    Takes the host's arguments and ``keep_ratio_loss``; see
    :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`.
    """

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict as the host does; each sample also says what was kept.

        Args:
            inputs: (B, 3, h, w) batch.
            data_samples: the host's, one per image.

        Returns:
            The host's samples. Given ``data_samples``, their metainfo gains
            ``kept_fractions``: one number per predictor, in sliding inference
            the mean over windows.
        """
        if data_samples is None:
            return super().predict(inputs)
        metas = [sample.metainfo for sample in data_samples]
        results = self.postprocess_result(self.inference(inputs, metas), data_samples)
        for result, meta in zip(results, metas, strict=True):
            windows = torch.stack(meta['kept_fractions'])
            result.set_metainfo(dict(kept_fractions=windows.mean(dim=0).tolist()))
        return results

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Segment a batch; padding is left out of the decisions.

        Args:
            inputs: (B, 3, h, w) batch, or a window of it in sliding inference.
            batch_img_metas: the host's, one per image; to the list
                ``kept_fractions`` of each, a tensor is appended (one number per
                predictor).

        Returns:
            (B, classes, h, w) logits.
        """
        # In sliding inference only the first image's meta follows the window, and
        # windows lie inside the images.
        sliding = self.test_cfg.get('mode') == 'slide'
        extracted, out = self.extract_sparse(inputs, [] if sliding else batch_img_metas)
        kept = torch.stack([decision.kept_fraction() for decision in out.decisions], dim=1)
        for meta, fractions in zip(batch_img_metas, kept, strict=True):
            meta.setdefault('kept_fractions', []).append(fractions)
        return super().encode_decode(extracted, batch_img_metas)
