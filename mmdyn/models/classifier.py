"""Image classifiers with a sparse backbone, which need no other package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from mmdyn.converters.additions import is_classifier
from mmdyn.models.adapters.mixin import ExtractedFeatures, SparseTrainingMixin
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.teacher import Teacher
from mmdyn.registry import MODELS
from mmdyn.samples import ClassSample, targets_of
from mmdyn.sparsity import Decision, SparseOutput


class Classifier(BaseModel):
    """A linear classifier on a sparse backbone; the host of :class:`DynamicClassifier`.

    Args:
        backbone: config; returns the map of its last stage or block only.
        num_classes: K, also of a preprocessor that mixes pictures.
        aux_head: whether there is a classifier of single locations too, as in LV-ViT.
        label_smoothing: of the cross-entropy; mixed images have smoothed labels already.
        data_preprocessor, init_cfg: as in mmengine.
    """

    with_neck = False

    def __init__(
        self,
        backbone: dict,
        num_classes: int = 1000,
        aux_head: bool = False,
        label_smoothing: float = 0.0,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.label_smoothing = label_smoothing
        widths = getattr(self.backbone, 'num_features', 0)
        channels = widths if isinstance(widths, int) else widths[-1]
        self.head = _linear(channels, num_classes)
        self.aux_head = _linear(channels, num_classes) if aux_head else None
        if getattr(self.data_preprocessor, 'mix', None) is not None:
            self.data_preprocessor.mix.num_classes = num_classes

    def extract_feat(self, inputs: Tensor) -> SparseOutput:
        """(B, C, h, w) images -> maps, of which the last is of the whole image, and decisions."""
        return self.backbone.forward_sparse(inputs)

    def class_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """(B, K) logits from the map of the whole image, the last one."""
        return self.head(feats[-1].flatten(1))

    def aux_logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W) logits of every location."""
        return self.aux_head(x.movedim(1, -1)).movedim(-1, 1)

    def logits_of(self, out: SparseOutput) -> Tensor:
        """(B, K) logits: with ``aux_head`` half of the highest of kept locations is added."""
        logits = self.class_logits(out.feats)
        if self.aux_head is None:
            return logits
        return logits + 0.5 * self._highest(out.feats[-2], out.decisions[-1])

    def _highest(self, x: Tensor, decision: Decision) -> Tensor:
        """(B, K) maximum of the auxiliary logits over the kept locations of (B, C, H, W).

        0 for an image that keeps none, which samples of training may do.
        """
        batch, channels = x.shape[:2]
        tokens = x.flatten(2).transpose(1, 2).reshape(-1, channels)
        found = self.aux_head(tokens.index_select(0, decision.keep_idx))
        image = decision.keep_idx.div(tokens.shape[0] // batch, rounding_mode='floor')
        lowest = found.new_full((batch, found.shape[1]), float('-inf'))
        highest = lowest.scatter_reduce(0, image[:, None].expand_as(found), found, 'amax')
        return highest.masked_fill(highest.isneginf(), 0.0)

    def training_logits(self, out: SparseOutput) -> Tensor:
        """(B, K) logits that labels teach."""
        return self.logits_of(out)

    def forward(
        self, inputs: Tensor, data_samples: list[ClassSample] | None = None, mode: str = 'tensor'
    ) -> Any:
        """(B, K) logits (``'tensor'``), losses (``'loss'``) or samples (``'predict'``)."""
        if mode == 'tensor':
            return self.logits_of(self.extract_feat(inputs))
        if mode not in ('loss', 'predict'):
            raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")
        return getattr(self, mode)(inputs, data_samples)

    def loss(self, inputs: Any, data_samples: list[ClassSample]) -> dict[str, Tensor]:
        """Cross-entropy of the logits with labels or probabilities."""
        logits = self.training_logits(self.extract_feat(inputs)).float()
        targets = targets_of(data_samples, logits.device)
        smoothing = 0.0 if targets.is_floating_point() else self.label_smoothing
        return dict(loss_cls=F.cross_entropy(logits, targets, label_smoothing=smoothing))

    def predict(
        self, inputs: Tensor, data_samples: list[ClassSample] | None = None
    ) -> list[ClassSample]:
        """Predict.

        Returns:
            Samples with ``pred_score``, and ``kept_fractions`` in the metainfo, one number per
            predictor.
        """
        out = self.extract_feat(inputs)
        samples = data_samples or [ClassSample() for _ in inputs]
        kept = zip(*(decision.kept_fraction().tolist() for decision in out.decisions), strict=True)
        scores = self.logits_of(out).float().softmax(dim=1)
        for sample, score, fractions in zip(samples, scores, kept, strict=True):
            sample.pred_score = score
            sample.set_metainfo(dict(kept_fractions=list(fractions)))
        return samples


@MODELS.register_module()
class DynamicClassifier(SparseTrainingMixin, Classifier):
    """Image classifier with a sparse backbone, as in the paper.

    Swin's and ConvNeXt's maps are pooled, a ViT has a class token. With a teacher it learns the
    teacher's class probabilities, and its features or, with ``aux_head``, its class probabilities
    of the kept locations; labels then teach the class token's logits alone.

    Args:
        args, kwargs: those of :class:`mmdyn.models.classifier.Classifier` and of
            :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`.
        logit_distill_loss: config of the loss from the teacher's logits, or None.

    Raises:
        TypeError: if the backbone is not one of mmdyn's.
        ValueError: if the backbone returns other maps than that of its last stage or block, or a
            ViT's without the final norm.
    """

    def __init__(
        self,
        *args: Any,
        logit_distill_loss: dict | None = dict(type='mmdyn.LogitDistillLoss'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.backbone.with_image_map = True
        _check_last_map(self.backbone)
        self.logit_distill_loss = logit_distill_loss and MODELS.build(logit_distill_loss)

    @property
    def _distils_locations(self) -> bool:
        with_logits = self.teacher_setting is not None and self.logit_distill_loss is not None
        return self.aux_head is not None and with_logits

    def extract_sparse(
        self, inputs: Tensor, metainfos: Sequence[Mapping[str, Any]]
    ) -> tuple[ExtractedFeatures, SparseOutput]:
        """See the mixin; images of a classifier are not padded."""
        out = self.backbone.forward_sparse(inputs)
        return ExtractedFeatures(out), out

    def training_logits(self, out: SparseOutput) -> Tensor:
        """See the base class; as in the original without the auxiliary ones if a teacher has."""
        return self.class_logits(out.feats) if self._distils_locations else self.logits_of(out)

    def distillation(
        self,
        teacher: Teacher,
        features: Sequence[Tensor],
        out: SparseOutput,
        losses: dict[str, Any],
    ) -> dict[str, Tensor]:
        """See the mixin; adds the losses on logits."""
        distilled = {}
        if not self._distils_locations:
            maps = SparseOutput(out.feats[:-1], out.decisions)
            distilled = super().distillation(teacher, features[:-1], maps, losses)
        if self.logit_distill_loss is None:
            return distilled
        models = ((self, out.feats), (teacher.model, features))
        logits = [model.class_logits(feats)[..., None, None] for model, feats in models]
        distilled['loss_distill_logit'] = self.logit_distill_loss(*logits)
        if self._distils_locations:
            logits = [model.aux_logits(feats[-2]) for model, feats in models]
            kept = out.decisions[-1].keep_mask.detach() > 0
            distilled['loss_distill_token'] = self.logit_distill_loss(*logits, kept)
        return distilled

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        # A converted checkpoint has the backbone's names, and those of its classifier.
        if not any(key.startswith(f'{prefix}backbone.') for key in state):
            for key in [key for key in state if key.startswith(prefix)]:
                name = key.removeprefix(prefix)
                if not is_classifier(name):
                    state[f'{prefix}backbone.{name}'] = state.pop(key)
        super()._load_from_state_dict(state, prefix, *args)


def _check_last_map(backbone: DynamicBackbone) -> None:
    widths = backbone.num_features
    last = (len(backbone.blocks) if isinstance(widths, int) else len(widths)) - 1
    if tuple(backbone.out_indices) != (last,):
        raise ValueError(
            'a classifier reads the last map of its backbone only, but out_indices is '
            f'{tuple(backbone.out_indices)}: set model.backbone.out_indices=({last},)'
        )
    if isinstance(widths, int) and backbone.norm is None:
        raise ValueError('a classifier reads normalised tokens: set model.backbone.final_norm=True')


def _linear(channels: int, classes: int) -> nn.Linear:
    layer = nn.Linear(channels, classes)
    trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
