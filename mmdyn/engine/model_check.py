"""Checks that a config's model and data match, before building them."""

import numbers
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from mmdyn.checks import check_integer
from mmdyn.config_parts import class_of, parts, type_name
from mmdyn.engine.data_check import Leaf, argument, class_names, typed_leaves

_ELSEWHERE = ('backbone', 'teacher')  # their num_classes are unrelated to the data

# Heads, or whole classifiers, whose predictions are evaluated, so their classes are the data's.
# Others may learn words, borders or things without stuff.
_MAIN_HEADS = ('decode_head', 'bbox_head', 'mask_head', 'model')


def check_model(cfg: Config, loaders: Sequence[str]) -> None:
    """Check for errors that a host would notice only in its first iteration, or never.

    Args:
        cfg: a whole config.
        loaders: names such as 'train_dataloader', of the model's data.

    Raises:
        TypeError, ValueError: on invalid numbers of classes or channels, sizes or inference modes.
    """
    heads = {}
    for place, part in parts(cfg.model, 'model', skip=_ELSEWHERE):
        if part.get('num_classes') is not None:
            check_integer(f'{place}.num_classes', part['num_classes'])
            if place.rstrip('.0123456789').rpartition('.')[2] in _MAIN_HEADS:
                heads[place] = part['num_classes']
    kind = type_name(cfg.model)
    if kind == 'MultimodalEncoderDecoder' or 'language_model' in cfg.model:
        heads = {}  # their classes are words
    for loader in loaders:
        for leaf in typed_leaves(cfg, loader):
            names = class_names(leaf) or ()
            for at, count in heads.items():
                # One class may mean two: a single score with a threshold.
                if 1 < count < len(names):
                    raise ValueError(
                        f'{leaf.place} has {len(names)} classes, but {at}.num_classes={count} is '
                        'lower: set both to the same number'
                    )
    if cfg.get('default_scope') == 'mmdyn':
        _check_same_classes([leaf for loader in loaders for leaf in typed_leaves(cfg, loader)])
    size = preprocessor_of(cfg).get('size')
    if size is not None and not _is_pair(size):
        raise ValueError(
            f'data_preprocessor.size must be a height and a width, as integers, got {size}'
        )
    channels_of(cfg)
    if cfg.get('default_scope') == 'mmseg':
        _check_inference(cfg.model.get('test_cfg') or {}, kind)


def _check_same_classes(leaves: Sequence[Leaf]) -> None:
    """Check that folders of classes have the same names, as classes are numbered by them."""
    named = [(leaf, class_names(leaf)) for leaf in leaves]
    named = [(leaf, names) for leaf, names in named if names]
    for leaf, names in named[1:]:
        first, wanted = named[0]
        if names != wanted:
            odd = sorted(set(names) ^ set(wanted))
            raise ValueError(
                f'{first.place} and {leaf.place} have other classes, e.g. {odd[0]!r} in one only: '
                'both need the same class folders, whose order numbers the classes'
            )


def _check_inference(test_cfg: dict, kind: str) -> None:
    """Check mmseg's inference mode."""
    mode = test_cfg.get('mode', 'whole')
    if mode not in ('whole', 'slide') and kind != 'DepthEstimator':  # which has another one
        raise ValueError(f"model.test_cfg.mode must be 'whole' or 'slide', got {mode!r}")
    for key in ('crop_size', 'stride') if mode == 'slide' else ():
        if not _is_pair(test_cfg.get(key)):
            raise ValueError(
                f"model.test_cfg.{key} must be two positive integers in mode 'slide', got "
                f'{test_cfg.get(key)}'
            )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, numbers.Integral) and side > 0 for side in value)
    )


def channels_of(cfg: Config) -> int:
    """Number of input channels of a config's model: ``in_channels`` of its backbone, or 3.

    Raises:
        ValueError: if the preprocessor normalises another number.
    """
    backbone = cfg.model.get('backbone') or {}
    cls = class_of(backbone.get('type'), cfg.get('default_scope'))
    channels = (
        backbone.get('in_channels') if cls is None else argument(backbone, cls, 'in_channels')
    )
    mean = preprocessor_of(cfg).get('mean')
    if isinstance(channels, int) and mean is not None and len(mean) not in (1, channels):
        raise ValueError(
            f'model.backbone.in_channels={channels}, but data_preprocessor.mean has {len(mean)} '
            'values, one per channel of a picture: change one to match the other'
        )
    return channels if isinstance(channels, int) else 3


def preprocessor_of(cfg: Config) -> dict[str, Any]:
    """Config of a model's data preprocessor; {} if there is none."""
    return cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
