"""What the parts of a model that decide have in common: a backbone, a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdyn.models.new_parameters import is_new
from mmdyn.models.policies import build_policy
from mmdyn.sparsity import Policy

KEEP_EVERYTHING = (
    '--keep-ratio 1, --cfg-options model.decode_head.tile_ratio=1 for a head that chooses tiles, '
    'the stock neck and rpn_head in place of those that do'
)
"""How a user has a model keep everything."""

EXECUTIONS = ('auto', 'masked', 'gathered')


def how_to_run(part: Any, policy: Policy | dict | None, execution: str) -> tuple[Policy, str]:
    """Settle what was left open: by whether the part is training.

    Args:
        part: a module with ``training_policy`` and ``policy``.
        policy: how scores become decisions; None = ``training_policy`` while training,
            ``policy`` otherwise.
        execution: ``'masked'``, ``'gathered'``, or ``'auto'``: masked while training, else
            gathered.

    Returns:
        The policy, and ``'masked'`` or ``'gathered'``.

    Raises:
        ValueError: on an unknown execution.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f'execution must be one of {EXECUTIONS}, got {execution!r}')
    training = part.training
    if policy is None:
        policy = part.training_policy if training else part.policy
    if execution == 'auto':
        execution = 'masked' if training else 'gathered'
    return build_policy(policy), execution


def check_scores(log_probs: Tensor, predictor: str) -> None:
    """Refuse scores that are not numbers.

    Args:
        log_probs: what the predictor returned.
        predictor: its name, for the message.

    Raises:
        ValueError: if one is NaN or infinite.
    """
    # A meta tensor holds no values.
    if not log_probs.is_meta and not torch.isfinite(log_probs).all():
        raise ValueError(
            f'{predictor} gave NaN or infinite scores: its input or its weights hold NaN or '
            'infinite values; check the images, the learning rate and the loss scale'
        )


def check_tile_ratio(ratio: float) -> float:
    """Return the ratio as a float, or say what is wrong with it.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is outside [0, 1].
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f'tile_ratio must be a number, got {ratio!r}')
    if not 0 <= ratio <= 1:
        raise ValueError(f'tile_ratio must lie in [0, 1], got {ratio}')
    return float(ratio)


def tile_part(model: nn.Module) -> Any | None:
    """The part of a host's model that chooses tiles, if one does: the decode head or the neck.

    It has ``tile_ratio``, ``set_tile_ratio``, ``highest_ratio`` and ``policy``.
    """
    parts = (getattr(model, name, None) for name in ('decode_head', 'neck'))
    return next((part for part in parts if hasattr(part, 'set_tile_ratio')), None)


def lacking(model: nn.Module, state: Mapping[str, Tensor], missing: Iterable[str]) -> list[str]:
    """Names of the parameters that a state dict has not given a model.

    Args:
        model: after ``load_state_dict``.
        state: the state dict.
        missing: what ``load_state_dict`` said is; without fast paths that the model made of
            a dense layer.
    """
    missing = set(missing)
    names = (name for name, _ in model.named_parameters())
    return [k for k in names if k in missing or (is_new(k) and k not in state)]


def missing_in_use(model: nn.Module, missing: Iterable[str]) -> tuple[list[str], list[str]]:
    """Which parameters a model predicts with and has not been given.

    Args:
        model: a host's, as its ratios are set.
        missing: names of the parameters that its checkpoint lacks.

    Returns:
        Those of the dense model, without auxiliary heads, which help a training only; and
        those of predictors and fast paths, without parts that keep everything.
    """
    ratios = {
        f'{name}.': min(getattr(part, 'keep_ratios', None) or [part.tile_ratio])
        for name, part in model.named_modules()
        if hasattr(part, 'keep_ratios') or hasattr(part, 'tile_ratio')
    }
    # What belongs to no such part follows another one's tiles.
    idle = tuple(name for name, ratio in ratios.items() if ratio == 1)
    unused = ('',) if len(idle) == len(ratios) else idle
    missing = list(missing)
    dense = [k for k in missing if not (is_new(k) or k.startswith('auxiliary_head.'))]
    return dense, [k for k in missing if is_new(k) and not k.startswith(unused)]
