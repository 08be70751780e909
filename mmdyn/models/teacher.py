"""The frozen dense model whose outputs a sparse one learns to keep."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmdyn.config_lookup import resolve_config_path
from mmdyn.converters.additions import is_new
from mmdyn.converters.formats import weights_of
from mmdyn.guard import checkpoints_as_data, load_checkpoint
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.deciding import tile_part
from mmdyn.sparsity import TopKPolicy

SELF = 'self'
_SAME_WEIGHTS = "teacher=dict(checkpoint='the dense model it started from')"


def check_teacher(teacher: Any) -> str | dict[str, Any] | None:
    """Return a ``teacher`` setting, or say what is wrong with it.

    Args:
        teacher: None, ``'self'``, or ``dict(checkpoint=…)`` with or without ``config``.

    Raises:
        TypeError: if it is none of these.
    """
    known = isinstance(teacher, Mapping) and isinstance(teacher.get('checkpoint'), str)
    if teacher is None or teacher == SELF or (known and set(teacher) <= {'config', 'checkpoint'}):
        return teacher
    raise TypeError(
        "teacher must be None, 'self' (the dense weights the training starts from) or "
        f'dict(checkpoint=PATH, config=CONFIG), config only for another architecture; got {teacher}'
    )


def is_dense(state: Mapping[str, Any]) -> bool:
    """Whether a state dict holds no predictor and no fast path."""
    return not any(is_new(key) for key in state)


class Teacher:
    """Runs a model without training it.

    Not a module, so that a model which holds one has neither its parameters nor
    its state; it follows the device of what it is given, and computes in the dtype it was
    made with. Copies of it, as in an averaged model (EMA), share its weights.

    Args:
        model: a host's model with a backbone; put into evaluation mode, a sparse
            backbone to keep ratio 1.

    Raises:
        ValueError: if the model's images are normalised otherwise than the student's,
            given as ``student``.
    """

    def __init__(self, model: nn.Module, student: nn.Module | None = None) -> None:
        self.model = model.requires_grad_(False)
        for module in model.modules():  # some hosts' backbones don't return self from train()
            module.training = False
        if isinstance(model.backbone, DynamicBackbone):
            model.backbone.set_keep_ratios((1.0,) * len(model.backbone.predictors))
            model.backbone.policy = TopKPolicy()
        if (head := tile_part(model)) is not None:
            head.set_tile_ratio(head.highest_ratio)
        if student is not None:
            _check_same_images(model, student)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return copy.copy(self)  # frozen: none needs weights of its own

    @torch.no_grad()
    def features(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, C, h, w) images."""
        self.model.to(inputs.device)
        # Not the other way round: some of the hosts' backbones know float32 only.
        return tuple(self.model.backbone(inputs.to(next(self.model.parameters()).dtype)))

    @torch.no_grad()
    def logits(self, features: tuple[Tensor, ...]) -> Tensor:
        """A segmentor's (B, K, H, W) logits from its backbone's maps."""
        model = self.model
        return model.decode_head(model.neck(features) if model.with_neck else features)


def teacher_of(student: nn.Module, setting: str | Mapping[str, Any]) -> Teacher:
    """Make the teacher that a setting names.

    Args:
        student: the sparse model; for ``'self'`` it still has the weights it starts from.
        setting: as :func:`check_teacher` returns it, not None.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the checkpoint does not hold the teacher's weights.
    """
    if setting == SELF:
        return Teacher(copy.deepcopy(student))
    config, checkpoint = setting.get('config'), setting['checkpoint']
    loaded = load_checkpoint(checkpoint)
    try:
        state, _ = weights_of(loaded)
    except ValueError as error:
        raise ValueError(f'the teacher {checkpoint}: {error}') from error
    if config is None:
        if not is_dense(state):
            raise ValueError(
                f'the teacher {checkpoint} holds predictors or fast paths: a sparse model, perhaps '
                f'half-trained; give the dense one, {_SAME_WEIGHTS}'
            )
        model = copy.deepcopy(student)
    else:
        model = _build(config)
    _load(model, state, checkpoint)
    return Teacher(model, student)


def _load(model: nn.Module, state: dict[str, Tensor], checkpoint: str) -> None:
    """Load a whole model's weights; only new parameters and what follows from others may lack."""
    remedy = 'give the checkpoint of the whole trained model, or its config too'
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch's way to say that shapes differ
        why = ' '.join(str(error).split())
        raise ValueError(f'the teacher {checkpoint} does not fit: {why}; {remedy}') from error
    parameters = {name for name, _ in model.named_parameters()}
    lost = [k for k in missing if not is_new(k) and (k in parameters or '.running_' in k)]
    if lost:
        raise ValueError(
            f'the teacher {checkpoint} lacks {len(lost)} of {len(model.state_dict())} tensors, '
            f'e.g. {lost[0]!r} (it holds e.g. {next(iter(unexpected or state))!r}): {remedy}'
        )


@checkpoints_as_data()
def _build(config: str) -> nn.Module:
    cfg = Config.fromfile(resolve_config_path(config))
    cfg.model.setdefault('backbone', {})['init_cfg'] = None
    with ROOT_MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        return registry.build(cfg.model)


def _check_same_images(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher that expects images normalised otherwise."""
    theirs, ours = (_normalisation(model) for model in (teacher, student))
    for name, value in theirs.items():
        if value != ours[name]:
            raise ValueError(
                f"the teacher's images have {name} {value}, the student's {ours[name]}: give both "
                'the same data_preprocessor'
            )


def _normalisation(model: nn.Module) -> dict[str, Any]:
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    return {
        'mean': None if mean is None else mean.flatten().tolist(),
        'std': None if std is None else std.flatten().tolist(),
        # Private to mmengine's ImgDataPreprocessor, which tells it in no other way; public where
        # mmseg's preprocessor is not derived from it (the original line).
        'channels swapped': getattr(preprocessor, '_channel_conversion', False)
        or getattr(preprocessor, 'channel_conversion', False),
    }
