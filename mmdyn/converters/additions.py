"""What an original sparse model adds to its dense twin: predictors and fast paths."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from torch import Tensor

from mmdyn.converters.rules import Rename, Renamed

NEVER_TAKEN = 'fast path of a block before the first predictor, never taken'
# A plain ViT's blocks have no stage.
_BLOCK = re.compile(r'(?:stages\.([0-9]+)\.)?(?:blocks\.)?([0-9]+)\.(.+)')


def predictor_rules(prefix: str = '') -> tuple[Rename, ...]:
    """Rules of the original's score predictors.

    Args:
        prefix: what stands before ``score_predictor.``.
    """
    old = f'{prefix}score_predictor.{{k}}'
    return (
        Rename(f'{old}.in_conv.0.*', 'predictors.{k}.norm.*'),
        Rename(f'{old}.in_conv.1.*', 'predictors.{k}.in_proj.0.*'),
        Rename(f'{old}.out_conv.{{n}}.*', 'predictors.{k}.out_proj.{n}.*'),
    )


def count_predictors(state: Mapping[str, Tensor]) -> int:
    """How many score predictors a state dict of ours has."""
    return len({key.split('.')[1] for key in state if key.startswith('predictors.')})


def first_fast_path(state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Stage and number of the first block with a fast path, in a state dict of ours.

    The blocks of a plain ViT count as stage 2, where sparse blocks are by default.
    """
    return min((block for key in state if (block := _fast_path_block(key))), default=None)


def drop_idle_fast_paths(renamed: Renamed, deep: int) -> Renamed:
    """Leave out the fast paths that an original model has and never takes.

    Those before its first predictor, which stands at block 1 of a short sparse
    stage. Another number of predictors than the paper's three may stand
    elsewhere; then all fast paths stay.

    Args:
        renamed: an original model's tensors under our names.
        deep: the first predictor's block in a sparse stage of more than 9 blocks.
    """
    if count_predictors(renamed.state_dict) != 3:
        return renamed
    blocks = {int(m[2]) for key in renamed.state_dict if (m := _BLOCK.match(key)) and m[1] == '2'}
    first = (2, 1 if len(blocks) <= 9 else deep)
    idle = {key for key in renamed.state_dict if (_fast_path_block(key) or first) < first}
    return dataclasses.replace(
        renamed,
        state_dict={key: value for key, value in renamed.state_dict.items() if key not in idle},
        dropped=renamed.dropped | dict.fromkeys(sorted(idle), NEVER_TAKEN),
    )


def _fast_path_block(key: str) -> tuple[int, int] | None:
    found = _BLOCK.match(key)
    if not found or not found[3].startswith('fast_path.'):
        return None
    return int(found[1] or 2), int(found[2])
