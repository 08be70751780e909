"""How a host's model trains a sparse backbone, without a copy of its loss.

The hosts' ``loss`` touches its inputs only through ``extract_feat``. So the
features are extracted first, together with the decisions, and handed to the
host's ``loss`` in an :class:`ExtractedFeatures`, which ``extract_feat`` passes
through. Decisions stay values from end to end; nothing is kept on the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.registry import MODELS
from mmdyn.sparsity import SparseOutput


@dataclass(frozen=True, eq=False)
class ExtractedFeatures:
    """Stands in for a batch whose features are extracted already.

    Attributes:
        feats: what ``extract_feat`` would return: maps after the neck, if any.
    """

    feats: Sequence[Tensor]


def real_shapes(
    metainfos: Sequence[Mapping[str, Any]], inputs: Tensor
) -> list[tuple[int, int]] | None:
    """Read off the samples where a padded batch holds real content.

    Args:
        metainfos: one per image, with the hosts' ``img_shape``.
        inputs: (B, C, h, w) batch.

    Returns:
        (h, w) of each image in pixels; None if a sample doesn't say, or is
        larger than the batch (a crop of it is looked at).
    """
    shapes = [tuple(meta['img_shape'][:2]) for meta in metainfos if 'img_shape' in meta]
    height, width = inputs.shape[-2:]
    if len(shapes) != inputs.shape[0] or any(h > height or w > width for h, w in shapes):
        return None
    return [(int(h), int(w)) for h, w in shapes]


class SparseTrainingMixin:
    """Adds decisions and their losses to a host's model; put it before the host's class.

    Args:
        *args: the host's.
        keep_ratio_loss: config of the loss on decisions.
        **kwargs: the host's.

    Raises:
        TypeError: if the backbone is not one of mmdyn's.
    """

    def __init__(
        self,
        *args: Any,
        keep_ratio_loss: dict = dict(type='mmdyn.KeepRatioLoss'),  # noqa: B006, only read
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.backbone, DynamicBackbone):
            raise TypeError(
                f'{type(self).__name__} trains a sparse backbone such as mmdyn.DynamicSwin, got '
                f'{type(self.backbone).__name__}; use the stock model.type for a dense one'
            )
        self.keep_ratio_loss = MODELS.build(keep_ratio_loss)

    def extract_sparse(
        self, inputs: Tensor, metainfos: Sequence[Mapping[str, Any]]
    ) -> tuple[ExtractedFeatures, SparseOutput]:
        """Extract features, and tell how.

        Args:
            inputs: (B, C, h, w) batch.
            metainfos: one per image; see :func:`real_shapes`.

        Returns:
            The features after the neck, and the backbone's own output.
        """
        out = self.backbone.forward_sparse(inputs, valid_shapes=real_shapes(metainfos, inputs))
        feats = self.neck(out.feats) if self.with_neck else out.feats
        return ExtractedFeatures(feats), out

    def extract_feat(self, inputs: Tensor | ExtractedFeatures) -> Sequence[Tensor]:
        """Extract features as the host does, or pass extracted ones through."""
        if isinstance(inputs, ExtractedFeatures):
            return inputs.feats
        return super().extract_feat(inputs)

    def loss(self, inputs: Tensor, data_samples: Sequence[Any]) -> dict[str, Any]:
        """Return the host's losses, the ratio loss and the kept fractions.

        Args:
            inputs: (B, C, h, w) batch.
            data_samples: the host's, one per image.
        """
        extracted, out = self.extract_sparse(inputs, [s.metainfo for s in data_samples])
        losses = super().loss(extracted, data_samples)
        losses['loss_keep_ratio'] = self.keep_ratio_loss(out.decisions)
        # Logged, not summed: mmengine adds up what has 'loss' in its name.
        for index, decision in enumerate(out.decisions):
            losses[f'keep_ratio_{index}'] = decision.kept_fraction().detach().mean()
        return losses
