"""Parameters besides those of a dense backbone: predictors, fast paths, a classifier."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mmdyn.converters.rules import Renamed, Rules

NEW_PARAMETERS = ('predictors.', 'fast_path')
"""Substrings that identify new parameters."""

CLASSIFIER = ('head.', 'aux_head.')
"""Prefixes of the parameters of an image classifier on a backbone."""

LAYER_BEFORE = 'a layer before the classifier'
"""Reason to drop a tensor, and the classifier with it."""

NEVER_TAKEN = 'fast path of a block before the first predictor, never taken'


def is_new(name: str) -> bool:
    """Whether a parameter of this name is a predictor's or a fast path's."""
    return any(part in name for part in NEW_PARAMETERS)


def is_classifier(name: str) -> bool:
    """Whether a parameter of this name is a classifier's."""
    return name.startswith(CLASSIFIER)


def is_dense(state: Iterable[str]) -> bool:
    """Whether a state dict has neither predictors nor fast paths."""
    return not any(map(is_new, state))


def classifier_rules() -> Rules:
    """Rules for a linear classifier: ``head``, mmpretrain's and timm's."""
    return {
        'head.fc.*': 'head.*',
        'head.layers.head.*': 'head.*',
        'head.*': 'head.*',
        'aux_head.*': 'aux_head.*',
    }


def predictor_rules(prefix: str = '') -> Rules:
    """Rules for the original's score predictors; ``prefix`` goes before ``score_predictor.``."""
    old = f'{prefix}score_predictor.{{k}}'
    return {
        f'{old}.in_conv.0.*': 'predictors.{k}.norm.*',
        f'{old}.in_conv.1.*': 'predictors.{k}.in_proj.0.*',
        f'{old}.out_conv.{{n}}.*': 'predictors.{k}.out_proj.{n}.*',
    }


def count_predictors(state: Mapping[str, Tensor]) -> int:
    """Number of score predictors in an mmdyn state dict."""
    return len({key.split('.')[1] for key in state if key.startswith('predictors.')})


def fast_path_block(key: str) -> tuple[int, int] | None:
    """Stage and block of a fast path's key; None for other keys.

    The blocks of a plain ViT count as stage 2, the default of sparse blocks.
    """
    found = re.match(r'(?:stages\.([0-9]+)\.)?(?:blocks\.)?([0-9]+)\.fast_path\.', key)
    return (int(found[1] or 2), int(found[2])) if found else None


def drop_idle_fast_paths(renamed: Renamed, deep: int) -> Renamed:
    """Remove fast paths that an original model has but never takes.

    They precede the first predictor, which is at block 1 of a short sparse stage. With another
    number of predictors than the paper's three, positions are unknown and all are kept.

    Args:
        renamed: an original model's tensors under our names.
        deep: block of the first predictor in a sparse stage of more than 9 blocks.
    """
    state = renamed.state_dict
    if count_predictors(state) != 3:
        return renamed
    stage = re.compile(r'stages\.2\.(?:blocks\.)?([0-9]+)\.')
    blocks = {found[1] for key in state if (found := stage.match(key))}
    first = (2, 1 if len(blocks) <= 9 else deep)
    idle = sorted(key for key in state if (fast_path_block(key) or first) < first)
    kept = {key: value for key, value in state.items() if key not in idle}
    return Renamed(kept, renamed.dropped | dict.fromkeys(idle, NEVER_TAKEN), renamed.unknown)
