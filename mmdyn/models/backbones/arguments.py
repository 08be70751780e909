"""Validation of the arguments of sparse backbones."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmdyn.checks import check_integer


def check_keep_ratios(keep_ratios: Sequence[float], predictors: int) -> tuple[float, ...]:
    """Validate keep ratios, one per predictor, in (0, 1] and non-increasing; return floats.

    Raises:
        TypeError: if they are not a sequence of numbers.
        ValueError: if their number, range or order is wrong.
    """
    ratios = tuple(map(float, _numbers('keep_ratios', keep_ratios, numbers.Real)))
    if len(ratios) != predictors:
        raise ValueError(
            f'keep_ratios {ratios} has {len(ratios)} entries for {predictors} predictors; give '
            'one per entry of sparse_blocks'
        )
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f'keep_ratios must lie in (0, 1], got {ratios}')
    if any(later > earlier for earlier, later in itertools.pairwise(ratios)):
        raise ValueError(
            f'keep_ratios must not rise from one predictor to the next, got {ratios}; '
            'order them from the highest to the lowest'
        )
    return ratios


def check_sparse_blocks(sparse_blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Validate the predictors' positions in a stage of ``depth`` blocks, strictly increasing.

    Raises:
        TypeError: if they are not a sequence of integers.
        ValueError: if they are empty, outside the stage or out of order.
    """
    positions = tuple(map(int, _numbers('sparse_blocks', sparse_blocks, numbers.Integral)))
    if not positions:
        raise ValueError('sparse_blocks is empty; give at least one block position')
    if not all(0 <= position < depth for position in positions):
        raise ValueError(
            f'sparse_blocks {positions} must lie in the sparse stage of {depth} blocks, '
            f'that is in 0..{depth - 1}; pass sparse_blocks, or choose another sparse_stage'
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(positions)):
        raise ValueError(f'sparse_blocks must rise strictly, got {positions}')
    return positions


def _numbers(name: str, values: Any, kind: type) -> list[Any]:
    """List the entries of a sequence, array or tensor; TypeError if one is not of ``kind``."""
    what = 'integers' if kind is numbers.Integral else 'numbers'
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f'{name} must be a sequence of {what}, got {values!r}')
    entries = values.tolist() if hasattr(values, 'tolist') else list(values)
    if not all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in entries):
        raise TypeError(f'{name} must hold {what}, got {values!r}')
    return entries


def check_sizes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Validate a sequence of positive integers and return it (TypeError, ValueError)."""
    return tuple(check_integer(name, value) for value in _numbers(name, values, numbers.Integral))


def rising_drop_path(highest: float, blocks: int) -> Tensor:
    """(blocks,): stochastic depth rate of each block, from 0 to ``highest`` in [0, 1)."""
    (rate,) = _numbers('drop_path_rate', [highest], numbers.Real)
    if not 0 <= rate < 1:
        raise ValueError(f'drop_path_rate must lie in [0, 1), got {rate}')
    return torch.linspace(0, rate, blocks, device='cpu')  # read as numbers, even in a meta model


def check_stage(name: str, stage: int, lowest: int, highest: int) -> int:
    """Validate an integer in ``lowest..highest`` and return it (TypeError, ValueError)."""
    if not isinstance(stage, numbers.Integral) or isinstance(stage, bool):
        raise TypeError(f'{name} must be an integer, got {stage!r}')
    if not lowest <= stage <= highest:
        raise ValueError(f'{name}={stage} must be in {lowest}..{highest} for this backbone')
    return int(stage)


def check_out_indices(out_indices: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """Validate which of ``levels`` maps are returned; negative indices count from the last.

    Raises:
        TypeError: if one is not an integer.
        ValueError: if one is out of range or given twice.
    """
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    indices = tuple(check_stage('out_indices', i, -levels, levels - 1) % levels for i in given)
    if len(set(indices)) < len(indices):
        raise ValueError(f'out_indices has duplicates: {given} of {levels} maps')
    return indices
