"""Segmentors of mmseg with a sparse backbone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmseg.models import (
    CascadeEncoderDecoder,
    CrossEntropyLoss,
    DDRHead,
    DPTHead,
    EncoderDecoder,
    FCNHead,
    MLANeck,
    OCRHead,
    PIDHead,
    SETRMLAHead,
)
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from mmdyn.models.adapters.mixin import ExtractedFeatures, SparseTrainingMixin, derive
from mmdyn.models.heads import DynamicUPerHead
from mmdyn.models.losses import known_pixels
from mmdyn.models.teacher import Teacher
from mmdyn.registry import MODELS
from mmdyn.sparsity import SparseOutput
from mmdyn.sparsity.tile_routing import Pyramid

# Temporary key among the decode head's losses: its logits and the mask of labelled pixels, removed
# again in ``distillation``.
_LOGITS = 'decode.logits'


# Packages whose layers accept any memory format, except mmcv's ops and the layers below, of mmseg's
# DMHead and LightHamHead.
_KNOWN = ('mmcv', 'mmdyn', 'mmengine', 'mmseg', 'torch')
_CONTIGUOUS = ('DCM', 'NMF2D')

# Heads that need the outputs of their own backbone, such as class tokens.
_OWN_BACKBONE = (DDRHead, DPTHead, PIDHead)


class SparseSegmentorMixin(SparseTrainingMixin):
    """Adds decisions to a segmentor; put it before the host's class.

    Takes the host's arguments, those of
    :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`, and:

    Args:
        logit_distill_loss: config of the loss from the teacher's logits to the decode head's, per
            labelled pixel; or None.

    Raises:
        ValueError: if logits are to be distilled, but the model does not train on one map of
            logits with one channel per class (cascades of heads don't).
    """

    HOSTS = (CascadeEncoderDecoder, EncoderDecoder)
    METHODS = ('extract_feat', 'loss', 'predict', 'encode_decode')
    OTHERS = 'EncoderDecoder and CascadeEncoderDecoder'

    def __init__(
        self,
        *args: Any,
        logit_distill_loss: dict | None = dict(type='mmdyn.LogitDistillLoss'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _check_maps(self)
        if _takes_channels_last(self):
            self.memory_format = torch.channels_last
        self.logit_distill_loss = logit_distill_loss and MODELS.build(logit_distill_loss)
        if self._distills_logits:
            # A cascade or a custom class may train on something else.
            if super()._decode_head_forward_train.__func__ is not (
                EncoderDecoder._decode_head_forward_train
            ):
                raise _no_logits(self)
            _check_logits(self.decode_head)

    @property
    def _distills_logits(self) -> bool:
        return self.teacher_setting is not None and self.logit_distill_loss is not None

    def extract_sparse(
        self, inputs: Tensor, metainfos: Sequence[Mapping[str, Any]]
    ) -> tuple[ExtractedFeatures, SparseOutput]:
        """See the mixin; the features carry their ``source``, for padding."""
        extracted, out = super().extract_sparse(inputs, metainfos)
        tiles = getattr(extracted.feats, 'tiles', None)
        return ExtractedFeatures(Pyramid(extracted.feats, tiles, source=out)), out

    def _decode_head_forward_train(
        self, inputs: Pyramid, data_samples: list[SegDataSample]
    ) -> dict[str, Any]:
        if not self._distills_logits:
            return super()._decode_head_forward_train(inputs, data_samples)
        if isinstance(self.decode_head, DynamicUPerHead):
            logits, losses = self.decode_head.logits_and_losses(inputs, data_samples)
            shapes = self.decode_head.fine_shapes(inputs, None)
        else:
            logits = self.decode_head(inputs)
            if not isinstance(logits, Tensor):
                raise _no_logits(self.decode_head)
            losses = self.decode_head.loss_by_feat(logits, data_samples)
            shapes = inputs.source.shapes_on(tuple(logits.shape[-2:]))
        known = known_pixels(data_samples, logits.shape[-2:], self.decode_head.ignore_index, shapes)
        return {**add_prefix(losses, 'decode'), _LOGITS: (logits, known)}

    def distillation(
        self,
        teacher: Teacher,
        features: Sequence[Tensor],
        out: SparseOutput,
        losses: dict[str, Any],
    ) -> dict[str, Tensor]:
        """See the mixin; adds the loss on the decode head's logits."""
        distilled = super().distillation(teacher, features, out, losses)
        if self._distills_logits:
            logits, known = losses.pop(_LOGITS)
            distilled['loss_distill_logit'] = self.logit_distill_loss(
                logits, teacher.logits(features), known
            )
        return distilled

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict like the host, and report the kept fractions.

        Returns:
            The host's samples. Given ``data_samples``, their metainfo gets ``kept_fractions``, one
            number per predictor of the backbone, averaged over windows in sliding inference; with a
            decode head that chooses tiles also ``kept_tiles``, a single number.
        """
        if data_samples is None:
            return super().predict(inputs)
        # Reused samples hold the fractions of an earlier prediction.
        fresh = (dict(kept_fractions=[], kept_tiles=[]) for _ in data_samples)
        metas = [sample.metainfo | new for sample, new in zip(data_samples, fresh, strict=True)]
        results = self.postprocess_result(self.inference(inputs, metas), data_samples)
        for result, meta in zip(results, metas, strict=True):
            windows = torch.stack(meta['kept_fractions'])
            result.set_metainfo(dict(kept_fractions=windows.mean(dim=0).tolist()))
            if meta['kept_tiles']:
                tiles = torch.stack(meta['kept_tiles']).mean().item()
                result.set_metainfo(dict(kept_tiles=tiles))
        return results

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Segment a batch, or a window of it, ignoring padding in the decisions.

        Appends a tensor, one number per predictor, to ``kept_fractions`` in each image's meta.
        """
        # In sliding inference only the first image's meta is updated to the window, and windows
        # lie within the images.
        sliding = self.test_cfg.get('mode') == 'slide'
        extracted, out = self.extract_sparse(inputs, [] if sliding else batch_img_metas)
        kept = torch.stack([d.kept_fraction().detach() for d in out.decisions], dim=1)
        for meta, fractions in zip(batch_img_metas, kept, strict=True):
            meta.setdefault('kept_fractions', []).append(fractions)
        return super().encode_decode(extracted, batch_img_metas)


SEGMENTORS = {
    host.__name__: MODELS.register_module(module=derive(host, SparseSegmentorMixin))
    for host in SparseSegmentorMixin.HOSTS
}
"""Adapters by the names of mmseg's segmentors."""

DynamicEncoderDecoder = SEGMENTORS['EncoderDecoder']


@MODELS.register_module()
class WeightedCrossEntropyLoss(CrossEntropyLoss):
    """mmseg's ``CrossEntropyLoss`` with class weights and ignored pixels, averaged as in torch.

    With class weights, mmseg fails on ignored pixels: the original line always, the maintained
    line if ``avg_non_ignore`` is set.

    Args:
        class_weight: one per class, non-negative.
        **kwargs: ``loss_weight`` and ``loss_name`` of mmseg's.
    """

    def __init__(self, class_weight: Sequence[float], **kwargs: Any) -> None:
        super().__init__(class_weight=class_weight, avg_non_ignore=True, **kwargs)
        if self.use_sigmoid or self.use_mask:
            raise ValueError(
                'WeightedCrossEntropyLoss is a softmax over classes: for use_sigmoid or use_mask '
                "use mmseg's CrossEntropyLoss"
            )

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> Tensor:
        """See mmseg's; the mean is weighted by the class weights of labelled pixels."""
        if avg_factor is None and (reduction_override or self.reduction) == 'mean':
            weights = cls_score.new_tensor(self.class_weight)
            avg_factor = weights[label[label != ignore_index]].sum()
        return super().forward(
            cls_score, label, weight, avg_factor, reduction_override, ignore_index, **kwargs
        )


def _takes_channels_last(model: nn.Module) -> bool:
    """Whether neck and heads read channels-last maps correctly.

    mmcv's ops assume contiguous memory, and ``view`` may fail on other formats. Modules of other
    packages, including your own, get contiguous maps.
    """
    reading = [child for child in model.children() if child is not model.backbone]
    return all(
        type(module).__module__.partition('.')[0] in _KNOWN
        and not type(module).__module__.startswith('mmcv.ops')
        and type(module).__name__ not in _CONTIGUOUS
        for child in reading
        for module in child.modules()
    )


def _check_maps(model: nn.Module) -> None:
    """Refuse modules that need class tokens, or several maps of the same size."""
    backbone, head = model.backbone, model.decode_head
    name = type(backbone).__name__
    # Modules that need maps of the same size, with the indices of the maps.
    alike: list[tuple[nn.Module, Sequence[int]]] = []
    if model.with_neck:  # whose outputs are not known
        if isinstance(model.neck, MLANeck):
            alike = [(model.neck, range(len(backbone.out_indices)))]
    else:
        for part in model.modules():
            if isinstance(part, _OWN_BACKBONE):
                raise ValueError(
                    f'{type(part).__name__} needs the outputs of its own backbone (class tokens, '
                    f'branches), but {name} returns maps only: use another decode head, such as '
                    'UPerHead or SETRUPHead'
                )
            if isinstance(part, SETRMLAHead):
                alike.append((part, part.in_index))
        for before, after in itertools.pairwise(head if isinstance(head, nn.ModuleList) else []):
            if isinstance(after, OCRHead) and isinstance(before, FCNHead):
                # Concatenated maps are resized to the first one.
                alike.append((after, [np.atleast_1d(part.in_index)[0] for part in (before, after)]))
    for part, indices in alike:
        sizes = {backbone.map_hw((4096, 4096), backbone.out_indices[index]) for index in indices}
        if len(sizes) > 1:
            raise ValueError(
                f'{type(part).__name__} needs the maps {[int(i) for i in indices]} to have the '
                f'same size, but those of {name} halve from stage to stage: use the same in_index '
                'for the heads of a cascade, or mmdyn.DynamicViT, whose maps have the same size, '
                'or another head, such as UPerHead'
            )


def _check_logits(head: nn.Module) -> None:
    """Refuse a decode head that is not trained with a softmax over classes."""
    losses = getattr(head, 'loss_decode', [])
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    sigmoid = any(getattr(loss, 'use_sigmoid', False) for loss in losses)
    known = (BaseDecodeHead.loss, DynamicUPerHead.loss)
    if getattr(type(head), 'loss', None) not in known or sigmoid:
        raise _no_logits(head)


def _no_logits(part: nn.Module) -> ValueError:
    return ValueError(
        f'{type(part).__name__} does not train on one map of logits with a softmax over classes, '
        'so logits can not be distilled from the teacher: set model.logit_distill_loss=None'
    )
