"""Whether a state dict under our names is a whole model of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmdyn.converters.additions import count_predictors, first_fast_path
from mmdyn.registry import MODELS

Shapes = Mapping[str, torch.Size]

# The norms before outputs: which there are depends on the outputs that were asked for.
OUTPUT_NORM = re.compile(r'norm[0-9]*\.(weight|bias)')


@dataclass(frozen=True)
class Check:
    """What was found out about a model.

    Attributes:
        arguments: the constructor's, as far as shapes tell them.
        predictors: how many there are.
        missing: names of output norms that a model of ours has beyond these, to be
            initialised; without predictors these and the fast paths come on top.
    """

    arguments: dict[str, Any]
    predictors: int
    missing: tuple[str, ...]


def check_architecture(
    state: Mapping[str, Tensor],
    backbone: str,
    arguments_of: Callable[[Mapping[str, Tensor]], dict[str, Any]],
) -> Check:
    """Compare names and shapes with those of the model that the state dict describes.

    Args:
        state: tensors under our names.
        backbone: name of our class.
        arguments_of: reads its arguments from the state dict.

    Raises:
        ValueError: if something is missing that is not new, is unexpected, or
            has another shape.
    """
    from mmdyn.models.new_parameters import is_new  # models import the converters

    arguments = arguments_of(state)
    predictors = count_predictors(state)
    found = {name: value.shape for name, value in state.items()}
    model = MODELS.get(f'mmdyn.{backbone}')

    # Where the predictors stand can't be seen; the first fast path tells where they begin.
    fast = first_fast_path(state)
    stages = len(arguments.get('depths', arguments.get('arch', {}).get('depths', (0, 0, 0))))
    stage, first = fast or (min(2, stages - 1), 0)
    sparsity: dict[str, Any] = dict(
        sparse_blocks=tuple(range(first, first + max(predictors, 1))),
        keep_ratios=(1.0,) * max(predictors, 1),
    )
    if stage != 2:
        sparsity['sparse_stage'] = stage
    with torch.device('meta'), _NumbersOnCpu():
        built = model(**arguments, **sparsity)
    expected = {name: value.shape for name, value in built.state_dict().items()}
    parameters = {name for name, _ in built.named_parameters()}
    dense = not predictors and fast is None
    optional = {
        name
        for name in (expected.keys() | found.keys())
        if OUTPUT_NORM.fullmatch(name) or (dense and is_new(name))
    } | (expected.keys() - parameters)
    _compare(found, expected, optional)
    missing = tuple(n for n in expected if OUTPUT_NORM.fullmatch(n) and n not in found)
    return Check(arguments, predictors, missing)


class _NumbersOnCpu(TorchFunctionMode):
    """Keeps drop path rates, which a constructor reads as numbers, off the meta device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


def _compare(found: Shapes, expected: Shapes, optional: frozenset | set = frozenset()) -> None:
    """Refuse what differs; optional names may be missing."""
    missing = [n for n in expected if n not in found and n not in optional]
    if missing:
        raise ValueError(
            f'the model is incomplete: {_some(missing)} missing, by the depths and widths that '
            'the file itself shows; take the whole file'
        )
    unexpected = [n for n in found if n not in expected and n not in optional]
    if unexpected:
        raise ValueError(
            f'{_some(unexpected)} unexpected: no such model of ours has them; take a checkpoint '
            'of the plain model'
        )
    wrong = [n for n in found if n in expected and found[n] != expected[n]]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f'{_some(wrong)} of another shape: {name} is {tuple(found[name])} where '
            f'{tuple(expected[name])} is expected, by the depths and widths that the file itself '
            'shows'
        )


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{", ".join(names[:3])}{more} {"is" if len(names) == 1 else "are"}'
