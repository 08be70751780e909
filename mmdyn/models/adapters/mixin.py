"""Trains a sparse backbone in a host's model, without a copy of its loss.

The hosts' ``loss`` touches its inputs only through ``extract_feat``. So features and decisions are
extracted first, and the features are passed to the host's ``loss`` in an
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
    """Replaces a batch whose features were already extracted by ``extract_feat``."""

    feats: Sequence[Tensor]


class SparseTrainingMixin:
    """Adds decisions and their losses to a host's model; put it before the host's class.

    With a teacher, a frozen dense model, the sparse one also learns to match its last feature map
    (and what a subclass adds). The teacher is in neither the parameters nor the state dict; it is
    built with the first loss.

    Args:
        args, kwargs: the host's.
        keep_ratio_loss: config of the loss on decisions.
        teacher: None; ``'self'``, the dense weights that this model starts from (our tools read
            them from ``load_from``, also on resume); or ``dict(checkpoint=…)`` of a dense model of
            the same architecture, with ``config=…`` of another one.
        feature_distill_loss: config of the loss on the backbone's last map, or None.

    Raises:
        TypeError: if the backbone is not one of mmdyn's, or on an invalid ``teacher``.
        ValueError: if neck or head read other maps than the backbone returns.
    """

    # Set by subclasses: verified host classes, whose METHODS touch the images only through
    # extract_feat, and alternatives to a model that can't be adapted (for messages).
    HOSTS: tuple[type, ...] = ()
    METHODS: tuple[str, ...] = ()
    OTHERS = ''
    # Of the backbone's maps; some modules need contiguous maps.
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
        # Whether the weights loaded last are a dense model's; None before any loading.
        self._starts_dense: bool | None = None

    def init_weights(self) -> None:
        """Initialise like the host, without overwriting a checkpoint of ``init_cfg``."""
        init_then_load(self, super().init_weights)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> None:
        self._starts_dense = is_dense(state_dict)
        super()._load_from_state_dict(state_dict, *args)

    @property
    def teacher(self) -> Teacher | None:
        """The frozen dense model, built on first use; None without a teacher.

        Raises:
            FileNotFoundError, ValueError: see :func:`mmdyn.models.teacher.teacher_of`.
        """
        if self.teacher_setting is None or self._teacher is not None:
            return self._teacher
        if self.teacher_setting == SELF and self._starts_dense is None:
            print_log(
                "teacher='self', but no weights were loaded: the teacher is randomly initialised; "
                'set load_from to the dense weights',
                logger='current',
                level=logging.WARNING,
            )
        if self.teacher_setting == SELF and self._starts_dense is False:
            raise ValueError(
                "teacher='self' means the dense weights that training starts from, but this model "
                'was loaded from a sparse checkpoint, perhaps a half-trained one: give the dense '
                "weights, teacher=dict(checkpoint='PATH'), or use tools/train.py, which reads "
                "them from the config's load_from"
            )
        self._teacher = teacher_of(self, self.teacher_setting)
        return self._teacher

    def extract_sparse(
        self, inputs: Tensor, metainfos: Sequence[Mapping[str, Any]]
    ) -> tuple[ExtractedFeatures, SparseOutput]:
        """(B, C, h, w) images -> features after the neck, and the backbone's output."""
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
        """Extract features like the host, or pass extracted ones through."""
        if isinstance(inputs, ExtractedFeatures):
            return inputs.feats
        return super().extract_feat(inputs)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Like the host's, and checks that the losses include the keep-ratio loss.

        Raises:
            BadDataError: if they don't, as a user's class may bypass this one.
        """
        result = super().forward(inputs, data_samples=data_samples, mode=mode)
        if mode == 'loss' and 'loss_keep_ratio' not in result:
            if not getattr(self, 'adds_keep_ratio_loss', False):
                raise BadDataError(
                    f'{type(self).__name__} would train its sparse backbone without the keep-ratio '
                    "loss: the class's forward or loss bypasses mmdyn's. Call self.loss in its "
                    'forward and super().loss in its loss; or add mmdyn.sparsity.keep_ratio_loss '
                    'there and declare it with the class attribute adds_keep_ratio_loss = True'
                )
        return result

    def loss(self, inputs: Tensor, data_samples: Sequence[Any]) -> dict[str, Any]:
        """The host's losses, those of sparsity and the teacher, and the kept fractions."""
        # First: 'self' means the current weights, and the teacher's activations should not add to
        # the student's memory.
        teacher = self.teacher
        taught = None if teacher is None else teacher.features(inputs)
        extracted, out = self.extract_sparse(inputs, [s.metainfo for s in data_samples])
        losses = super().loss(extracted, data_samples)
        losses['loss_keep_ratio'] = self.keep_ratio_loss(out.decisions)
        tiles = getattr(extracted.feats, 'tiles', None)
        if tiles is not None and 'tile_ratio' not in losses:  # not added by our head
            losses['loss_tile_ratio'] = self.keep_ratio_loss([tiles.decision])
            losses['tile_ratio'] = tiles.decision.kept_fraction().detach().mean()
        if teacher is not None:
            losses.update(self.distillation(teacher, taught, out, losses))
        # Logged, not summed: mmengine sums the entries with 'loss' in their names.
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
        """Distillation losses: here on the backbone's last map.

        ``features`` are the teacher's maps, ``out`` the sparse backbone's output; a subclass
        removes its own entries from the host's ``losses``.
        """
        if self.feature_distill_loss is None:
            return {}
        last = out.feats[-1]
        real = valid_mask_of(out.shapes and out.shapes[-1], tuple(last.shape[-2:]), last.device)
        loss = self.feature_distill_loss(last, features[-1], out.decisions, real)
        return dict(loss_distill_feature=loss)


def supports(model: type, mixin: type[SparseTrainingMixin]) -> bool:
    """Whether a model's class inherits a mixin's ``METHODS`` from its ``HOSTS``."""
    return all(
        any(getattr(model, name) is vars(host).get(name) for host in mixin.HOSTS)
        for name in mixin.METHODS
    )


@functools.cache
def derive(model: type, mixin: type[SparseTrainingMixin]) -> type:
    """Derive the class, named ``Dynamic`` plus the model's name, that trains a sparse backbone.

    Raises:
        ValueError: if the model reads its images other than through ``extract_feat``.
    """
    if not supports(model, mixin):
        raise ValueError(
            f'{model.__name__} does not read its images through extract_feat alone, so decisions '
            f'can be neither made nor trained in it: use another model ({mixin.OTHERS} work), or '
            'a dense backbone. A class of your own must inherit '
            f'{", ".join(mixin.METHODS)}; or add mmdyn.sparsity.keep_ratio_loss itself and '
            'declare it with the class attribute adds_keep_ratio_loss = True'
        )
    doc = f"""``{model.__name__}`` that trains a sparse backbone.

    Takes its arguments and those of
    :class:`mmdyn.models.adapters.mixin.SparseTrainingMixin`.
    """
    return type(model)(
        f'Dynamic{model.__name__}', (mixin, model), {'__doc__': doc, '__module__': mixin.__module__}
    )
