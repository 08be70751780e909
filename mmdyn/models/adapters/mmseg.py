"""Segmentors of mmseg with a sparse backbone."""

from __future__ import annotations

from mmseg.models import EncoderDecoder
from torch import Tensor

from mmdyn.models.adapters.mixin import SparseTrainingMixin
from mmdyn.registry import MODELS


@MODELS.register_module()
class DynamicEncoderDecoder(SparseTrainingMixin, EncoderDecoder):
    """mmseg's ``EncoderDecoder`` that trains a sparse backbone.

    Takes the host's arguments and ``keep_ratio_loss``; see
    :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`.
    """

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Segment a batch; padding is left out of the decisions.

        Args:
            inputs: (B, 3, h, w) batch, or a window of it in sliding inference.
            batch_img_metas: the host's, one per image.

        Returns:
            (B, classes, h, w) logits.
        """
        # In sliding inference only the first image's meta follows the window, and
        # windows lie inside the images.
        sliding = self.test_cfg.get('mode') == 'slide'
        extracted, _ = self.extract_sparse(inputs, [] if sliding else batch_img_metas)
        return super().encode_decode(extracted, batch_img_metas)
