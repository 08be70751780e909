"""Infers the architecture from a state dict and checks that it is complete."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from mmdyn.converters.additions import count_predictors, fast_path_block, is_dense, is_new
from mmdyn.registry import MODELS

# Output norms, which depend on the requested outputs.
OUTPUT_NORM = re.compile(r'norm[0-9]*\.(weight|bias)')


def tensor_of(state: Mapping[str, Tensor], key: str, dims: int) -> Tensor:
    """Return a tensor that every model of the family has.

    Raises:
        ValueError: if it is missing, has not ``dims`` dimensions, or one of them is 0.
    """
    if key not in state:
        raise ValueError(f'the model is incomplete: {key!r} is missing; use the whole file')
    if state[key].dim() != dims or 0 in state[key].shape:
        raise ValueError(
            f'{key!r} has shape {tuple(state[key].shape)}, expected {dims} non-empty dimensions'
        )
    return state[key]


def depths_of(state: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """Number of blocks of each stage.

    Args:
        state: with our names.
        pattern: regular expression for the start of a block's names, with groups ``block`` and,
            for several stages, ``stage``.

    Raises:
        ValueError: if a stage or block in between is missing.
    """
    blocks: dict[int, set[int]] = {}
    for key in state:
        if found := re.match(pattern, key):
            stage = int(found.groupdict().get('stage', 0))
            blocks.setdefault(stage, set()).add(int(found['block']))
    depths = tuple(len(blocks.get(stage, ())) for stage in range(max(len(blocks), 1)))
    for stage, depth in enumerate(depths):
        if not depth or max(blocks[stage]) >= depth:
            raise ValueError(
                f'the model is incomplete: a block of stage {stage} is missing; use the whole file'
            )
    return depths


def check_architecture(
    state: Mapping[str, Tensor], backbone: str, arguments: dict[str, Any]
) -> tuple[str, ...]:
    """Compare names and shapes with those of the model that a state dict describes.

    Args:
        state: tensors under our names.
        backbone, arguments: our class and its arguments, as inferred from the state dict.

    Returns:
        Names of output norms that our model has in addition and that must be initialised; for a
        dense model also all new parameters.

    Raises:
        ValueError: if something other than new parameters is missing, is unexpected, or has another
            shape.
    """
    # Predictor positions are not stored, but fast paths start at the first one.
    predictors = max(count_predictors(state), 1)
    stages = len(arguments.get('depths', arguments.get('arch', {}).get('depths', (0, 0, 0))))
    stage, first = min(filter(None, map(fast_path_block, state)), default=(min(2, stages - 1), 0))
    sparsity: dict[str, Any] = dict(
        sparse_blocks=tuple(range(first, first + predictors)), keep_ratios=(1.0,) * predictors
    )
    if stage != 2:
        sparsity['sparse_stage'] = stage
    with torch.device('meta'):
        built = MODELS.get(f'mmdyn.{backbone}')(**arguments, **sparsity)
    expected = {name: value.shape for name, value in built.state_dict().items()}
    norms = tuple(n for n in expected if OUTPUT_NORM.fullmatch(n) and n not in state)
    dense = is_dense(state)
    required = {
        name
        for name, _ in built.named_parameters()
        if name not in norms and not (dense and is_new(name))
    }
    if missing := [name for name in expected if name in required and name not in state]:
        raise ValueError(
            f'the model is incomplete: {some(missing)} missing, for the depths and widths in the '
            'file; use the whole file'
        )
    if unexpected := [n for n in state if n not in expected and not OUTPUT_NORM.fullmatch(n)]:
        raise ValueError(
            f'no mmdyn model has {some(unexpected)}; use a checkpoint of the plain model'
        )
    if wrong := [n for n in state if n in expected and state[n].shape != expected[n]]:
        raise ValueError(
            f'{len(wrong)} tensors of another shape: {wrong[0]!r} is '
            f'{tuple(state[wrong[0]].shape)} where {tuple(expected[wrong[0]])} is expected, for '
            'the depths and widths in the file'
        )
    return norms


def some(names: Collection[str]) -> str:
    """Format the first three names for a message."""
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(map(repr, list(names)[:3])) + more
