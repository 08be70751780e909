"""What the shapes in a state dict say of its model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


def tensor_of(state: Mapping[str, Tensor], key: str, dims: int) -> Tensor:
    """A tensor that every model of the family has.

    Raises:
        ValueError: if it is missing, has not ``dims`` dimensions, or one of them is 0.
    """
    if key not in state:
        raise ValueError(f'the model is incomplete: {key!r} is missing; take the whole file')
    if state[key].dim() != dims or 0 in state[key].shape:
        raise ValueError(
            f'{key!r} has shape {tuple(state[key].shape)} where {dims} dimensions are expected, '
            'none of them 0'
        )
    return state[key]


def depths_of(state: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """How many blocks each stage has.

    Args:
        state: names of ours.
        pattern: regular expression of the start of a block's names, with groups
            ``block`` and, unless there is one stage only, ``stage``.

    Raises:
        ValueError: if a stage, or a block before a stage's last, is missing.
    """
    blocks: dict[int, set[int]] = {}
    for key in state:
        if found := re.match(pattern, key):
            stage = int(found.groupdict().get('stage', 0))
            blocks.setdefault(stage, set()).add(int(found['block']))
    for stage in range(max(blocks, default=0) + 1):
        present = blocks.get(stage, set())
        lost = next((j for j in range(max(present, default=0) + 1) if j not in present), None)
        if lost is not None:
            raise ValueError(
                f'the model is incomplete: block {lost} of stage {stage} is missing; take the '
                'whole file'
            )
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


def ratio(hidden: int, width: int) -> int | float:
    """``hidden / width``, an integer where it is one."""
    return hidden // width if hidden % width == 0 else hidden / width
