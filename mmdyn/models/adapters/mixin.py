"""How a host's model trains a sparse backbone, without a copy of its loss.

The hosts' ``loss`` touches its inputs only through ``extract_feat``. So the features are extracted
first, together with the decisions, and handed to the host's ``loss`` in an
:class:`ExtractedFeatures`, which ``extract_feat`` passes through.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmdyn.converters.additions import is_dense
from mmdyn.errors import BadDataError
from mmdyn.guard import checkpoints_as_data
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.channels import check_channels
from mmdyn.models.deciding import Deciding
from mmdyn.models.init_order import init_then_load
from mmdyn.models.shapes import real_shapes
from mmdyn.models.teacher import SELF, Teacher, check_teacher, teacher_of
from mmdyn.registry import MODELS
from mmdyn.sparsity import SparseOutput
from mmdyn.sparsity.decision import valid_mask_of
from mmdyn.sparsity.tile_routing import Pyramid


@dataclass(frozen=True, eq=False)
class ExtractedFeatures:
    """Stands in for a batch whose features, what ``extract_feat`` returns, are there already."""

    feats: Sequence[Tensor]


class SparseTrainingMixin:
    """Adds decisions and their losses to a host's model; put it before the host's class.

    With a teacher, a frozen dense model, the sparse one also learns to keep the teacher's
    last feature map (and what a subclass adds). The teacher is neither among the
    parameters nor in the state dict; it is made when the first loss is asked for.

    Args:
        args, kwargs: the host's.
        keep_ratio_loss: config of the loss on decisions.
        teacher: None; ``'self'``, the dense weights that this model starts from (our tools
            read them from ``load_from``, also when a training is resumed); or
            ``dict(checkpoint=…)`` of a dense model of the same architecture, with
            ``config=…`` of another one.
        feature_distill_loss: config of the loss on the backbone's last map, or None.

    Raises:
        TypeError: if the backbone is not one of mmdyn's, or ``teacher`` is none of these.
        ValueError: if the neck or a head reads other maps than the backbone returns.
    """

    # Of a subclass: host classes whose own METHODS were looked at, which may touch the images
    # through extract_feat alone, and what to take in place of a model that can't be adapted.
    HOSTS: tuple[type, ...] = ()
    METHODS: tuple[str, ...] = ()
    OTHERS = ''
    # Of the backbone's maps; what reads them may need them contiguous.
    memory_format = torch.contiguous_format

    @checkpoints_as_data()
    def __init__(
        self,
        *args: Any,
        keep_ratio_loss: dict = dict(type='mmdyn.KeepRatioLoss'),  # noqa: B006, only read
        teacher: str | dict | None = None,
        feature_distill_loss: dict | None = dict(type='mmdyn.FeatureDistillLoss'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.backbone, DynamicBackbone):
            raise TypeError(
                f'{type(self).__name__} trains a sparse backbone such as mmdyn.DynamicSwin, got '
                f'{type(self.backbone).__name__}; use the stock model.type for a dense one'
            )
        check_channels(self)
        self.keep_ratio_loss = MODELS.build(keep_ratio_loss)
        self.feature_distill_loss = feature_distill_loss and MODELS.build(feature_distill_loss)
        self.teacher_setting = check_teacher(teacher)
        self._teacher: Teacher | None = None
        # Whether what was loaded last is a dense model's; None before anything was.
        self._starts_dense: bool | None = None

    def init_weights(self) -> None:
        """Initialise as the host does; some initialise what a checkpoint in ``init_cfg`` gave."""
        init_then_load(self, super().init_weights)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> None:
        self._starts_dense = is_dense(state_dict)
        super()._load_from_state_dict(state_dict, *args)

    @property
    def teacher(self) -> Teacher | None:
        """The frozen dense model, made on first use; None if none was asked for.

        Raises:
            FileNotFoundError, ValueError: if it can't be made; see
                :func:`mmdyn.models.teacher.teacher_of`.
        """
        if self.teacher_setting is None or self._teacher is not None:
            return self._teacher
        if self.teacher_setting == SELF and self._starts_dense is None:
            print_log(
                "teacher='self': no weights were loaded, it teaches what the model was initialised "
                'with; load_from is where the dense weights belong',
                logger='current',
                level=logging.WARNING,
            )
        if self.teacher_setting == SELF and self._starts_dense is False:
            raise ValueError(
                "teacher='self' means the dense weights a training starts from, but this model "
                'was loaded from a sparse checkpoint, perhaps a half-trained one: name the dense '
                "weights, teacher=dict(checkpoint='PATH'), or use tools/train.py, which reads "
                "them from the config's load_from"
            )
        self._teacher = teacher_of(self, self.teacher_setting)
        return self._teacher

    def extract_sparse(
        self, inputs: Tensor, metainfos: Sequence[Mapping[str, Any]]
    ) -> tuple[ExtractedFeatures, SparseOutput]:
        """(B, C, h, w) images -> the features after the neck, and the backbone's own output."""
        shapes = real_shapes(metainfos, inputs.shape[0], tuple(inputs.shape[-2:]))
        out = self.backbone.forward_sparse(
            inputs, valid_shapes=shapes, memory_format=self.memory_format
        )
        if not self.with_neck:
            return ExtractedFeatures(out.feats), out
        if isinstance(self.neck, Deciding):
            return ExtractedFeatures(self.neck.forward_sparse(Pyramid(out.feats, source=out))), out
        return ExtractedFeatures(self.neck(out.feats)), out

    def extract_feat(self, inputs: Tensor | ExtractedFeatures) -> Sequence[Tensor]:
        """Extract features as the host does, or pass extracted ones through."""
        if isinstance(inputs, ExtractedFeatures):
            return inputs.feats
        return super().extract_feat(inputs)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """See the host's; a class of your own may leave ours out, which is no training.

        Raises:
            BadDataError: if there are losses and none that holds the keep ratios.
        """
        result = super().forward(inputs, data_samples=data_samples, mode=mode)
        if mode == 'loss' and 'loss_keep_ratio' not in result:
            if not getattr(self, 'adds_keep_ratio_loss', False):
                raise BadDataError(
                    f'{type(self).__name__} would train its sparse backbone without the loss that '
                    "holds its keep ratios: the class' own forward or loss does without ours. "
                    'Have its forward call self.loss, and its loss super().loss; or add '
                    'mmdyn.sparsity.keep_ratio_loss there and say so by the class attribute '
                    'adds_keep_ratio_loss = True'
                )
        return result

    def loss(self, inputs: Tensor, data_samples: Sequence[Any]) -> dict[str, Any]:
        """The host's losses, those of sparsity and the teacher, and the kept fractions."""
        # Before anything else: 'self' is what the weights are now, and its maps should not take
        # their memory on top of the student's.
        teacher = self.teacher
        taught = None if teacher is None else teacher.features(inputs)
        extracted, out = self.extract_sparse(inputs, [s.metainfo for s in data_samples])
        losses = super().loss(extracted, data_samples)
        losses['loss_keep_ratio'] = self.keep_ratio_loss(out.decisions)
        tiles = getattr(extracted.feats, 'tiles', None)
        if tiles is not None and 'tile_ratio' not in losses:  # no head of ours has seen to it
            losses['loss_tile_ratio'] = self.keep_ratio_loss([tiles.decision])
            losses['tile_ratio'] = tiles.decision.kept_fraction().detach().mean()
        if teacher is not None:
            losses.update(self.distillation(teacher, taught, out, losses))
        # Logged, not summed: mmengine adds up what has 'loss' in its name.
        for index, decision in enumerate(out.decisions):
            losses[f'keep_ratio_{index}'] = decision.kept_fraction().detach().mean()
        return losses

    def distillation(
        self,
        teacher: Teacher,
        features: Sequence[Tensor],
        out: SparseOutput,
        losses: dict[str, Any],
    ) -> dict[str, Tensor]:
        """The losses towards the teacher: here that on the backbone's last map.

        ``features`` are the teacher's maps, ``out`` is what the sparse backbone returned; from the
        host's ``losses`` a subclass takes out what it put there for this.
        """
        if self.feature_distill_loss is None:
            return {}
        last = out.feats[-1]
        real = valid_mask_of(out.shapes and out.shapes[-1], tuple(last.shape[-2:]), last.device)
        loss = self.feature_distill_loss(last, features[-1], out.decisions, real)
        return dict(loss_distill_feature=loss)


def supports(model: type, mixin: type[SparseTrainingMixin]) -> bool:
    """Whether a model's class has a mixin's ``METHODS`` from its ``HOSTS``."""
    return all(
        any(getattr(model, name) is vars(host).get(name) for host in mixin.HOSTS)
        for name in mixin.METHODS
    )


@functools.cache
def derive(model: type, mixin: type[SparseTrainingMixin]) -> type:
    """The class, ``Dynamic`` and the model's name, that trains a sparse backbone in a model.

    Raises:
        ValueError: if the model, a host's or one of your own, reads its images in its own way.
    """
    if not supports(model, mixin):
        raise ValueError(
            f'{model.__name__} reads its images in its own way, not through extract_feat alone, so '
            f'decisions can neither be made nor trained in it: take another ({mixin.OTHERS} will '
            'do), or a dense backbone. A class of your own inherits '
            f'{", ".join(mixin.METHODS)}; or it adds mmdyn.sparsity.keep_ratio_loss by itself and '
            'says so by the class attribute adds_keep_ratio_loss = True'
        )
    doc = f"""``{model.__name__}`` that trains a sparse backbone.

    Takes its arguments and those of
    :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`.
    """
    return type(model)(
        f'Dynamic{model.__name__}', (mixin, model), {'__doc__': doc, '__module__': mixin.__module__}
    )
