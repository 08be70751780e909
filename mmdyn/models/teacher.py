"""The frozen dense teacher for distillation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmdyn.config_lookup import resolve_config_path
from mmdyn.converters.additions import is_dense, is_new
from mmdyn.converters.formats import weights_of
from mmdyn.guard import checkpoints_as_data, load_checkpoint
from mmdyn.models.deciding import keep_everything
from mmdyn.models.weights import load_weights

SELF = 'self'


def check_teacher(teacher: Any) -> str | dict[str, Any] | None:
    """Validate a teacher: None, ``'self'``, or ``dict(checkpoint=…)`` with optional ``config``.

    Raises:
        TypeError: if ``teacher`` is anything else.
    """
    known = isinstance(teacher, Mapping) and isinstance(teacher.get('checkpoint'), str)
    if teacher is None or teacher == SELF or (known and set(teacher) <= {'config', 'checkpoint'}):
        return teacher
    raise TypeError(
        "teacher must be None, 'self' (the dense weights that training starts from) or "
        f'dict(checkpoint=PATH, config=CONFIG), config for another architecture only; got {teacher}'
    )


class Teacher:
    """Runs a frozen model.

    Not a module, so its parameters and state stay out of the model that holds it. It follows the
    device of its inputs and computes in the dtype of its weights. Copies, as in an averaged model
    (EMA), share its weights.

    Args:
        model: a host's model with a backbone; set to evaluation, a sparse backbone to keep ratio
            1.

    Raises:
        ValueError: if the image normalisation differs from that of the ``student``.
    """

    def __init__(self, model: nn.Module, student: nn.Module | None = None) -> None:
        self.model = keep_everything(model).requires_grad_(False)
        for module in model.modules():  # train() of some hosts' backbones returns None
            module.training = False
        if student is not None:
            _check_same_images(model, student)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return copy.copy(self)  # frozen, so copies share the weights

    @torch.no_grad()
    def features(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, C, h, w) images."""
        self.model.to(inputs.device)
        # The inputs are cast, not the weights: some hosts' backbones support float32 only.
        return tuple(self.model.backbone(inputs.to(next(self.model.parameters()).dtype)))

    @torch.no_grad()
    def logits(self, features: tuple[Tensor, ...]) -> Tensor:
        """A segmentor's (B, K, H, W) logits from its backbone's maps."""
        model = self.model
        return model.decode_head(model.neck(features) if model.with_neck else features)


def teacher_of(student: nn.Module, setting: str | Mapping[str, Any]) -> Teacher:
    """Build the teacher of a setting.

    Args:
        student: the sparse model; for ``'self'`` with the weights it starts from.
        setting: from :func:`check_teacher`, not None.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the checkpoint lacks weights of the teacher.
    """
    if setting == SELF:
        return Teacher(copy.deepcopy(student))
    config, source = setting.get('config'), f'the teacher {setting["checkpoint"]}'
    state, _ = weights_of(load_checkpoint(setting['checkpoint']), source)
    if config is None and not is_dense(state):
        raise ValueError(
            f'{source} has predictors or fast paths: it is a sparse model, perhaps half-trained; '
            "give the dense one, teacher=dict(checkpoint='the dense model it started from')"
        )
    model = copy.deepcopy(student) if config is None else _build(config)
    report = load_weights(model, state, source)
    if lost := [key for key in report.missing if not is_new(key)]:
        raise ValueError(
            f"{source} lacks {len(lost)} of the model's tensors, e.g. {lost[0]!r} (it has e.g. "
            f'{next(iter(report.unexpected or state))!r}): give the checkpoint of the whole '
            'trained model, or its config as well'
        )
    return Teacher(model, student)


@checkpoints_as_data()
def _build(config: str) -> nn.Module:
    cfg = Config.fromfile(resolve_config_path(config))
    cfg.model.setdefault('backbone', {})['init_cfg'] = None
    with ROOT_MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        return registry.build(cfg.model)


def _check_same_images(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher with another image normalisation."""
    ours = _normalisation(student)
    for name, value in _normalisation(teacher).items():
        if value != ours[name]:
            raise ValueError(
                f"the teacher's images have {name} {value}, the student's {ours[name]}: use the "
                'same data_preprocessor for both'
            )


def _normalisation(model: nn.Module) -> dict[str, Any]:
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    return {
        'mean': None if mean is None else mean.flatten().tolist(),
        'std': None if std is None else std.flatten().tolist(),
        # Private in mmengine's ImgDataPreprocessor, without a public accessor; public in mmseg's
        # preprocessor on the original line, which is not derived from it.
        'channels swapped': getattr(preprocessor, '_channel_conversion', False)
        or getattr(preprocessor, 'channel_conversion', False),
    }
