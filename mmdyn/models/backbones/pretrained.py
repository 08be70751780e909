"""Loading a checkpoint, a dense one for example, into a sparse backbone."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmdyn.config_parts import type_name
from mmdyn.converters.additions import is_new
from mmdyn.converters.architecture import OUTPUT_NORM
from mmdyn.converters.formats import to_our_names, weights_of
from mmdyn.guard import load_checkpoint
from mmdyn.hub import timm_model_name, timm_weights


def pretrained_init_cfg(
    pretrained: str | None, init_cfg: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Read the hosts' old argument ``pretrained`` as the ``init_cfg`` that it stands for.

    Raises:
        ValueError: if both are given.
    """
    if pretrained is None:
        return init_cfg
    if init_cfg:
        raise ValueError(
            f'pretrained={pretrained!r} and init_cfg={init_cfg} exclude each other; keep init_cfg'
        )
    return dict(type='Pretrained', checkpoint=pretrained)


def backbone_weights(checkpoint: Any, prefix: str | None = None) -> dict[str, Tensor]:
    """Find the backbone's weights in a checkpoint.

    Args:
        checkpoint: see :func:`mmdyn.converters.formats.weights_of`; the keys may
            start with ``backbone.`` in a whole segmentor or detector, whose other
            parts are left out.
        prefix: the backbone's prefix in it; None = ``backbone.`` if it occurs.

    Returns:
        Weights under the backbone's own names.

    Raises:
        ValueError: if it is no checkpoint, or ``prefix`` is given and no key
            starts with it.
    """
    state, _ = weights_of(checkpoint)
    prefix = 'backbone.' if prefix is None else prefix.rstrip('.') + '.'
    inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not inner and prefix != 'backbone.':
        raise ValueError(
            f'no key of the checkpoint starts with {prefix!r}; it holds e.g. {next(iter(state))!r}'
        )
    return inner or state


def load_pretrained(model: nn.Module, init_cfg: Mapping[str, Any]) -> None:
    """Load the checkpoint that ``init_cfg`` names; new parameters stay as they are.

    Its layout is recognised by its keys, see :data:`mmdyn.converters.formats.FORMATS`;
    names of none are taken to be the model's. The model may offer
    ``adapt_state_dict(state) -> state`` to resize tables.

    Args:
        model: a sparse backbone.
        init_cfg: ``dict(type='Pretrained', checkpoint=source, prefix=None)``;
            the source is a path, an address, ``timm://NAME``, or a timm model's
            name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ``init_cfg`` is of another type, the checkpoint holds more
            than data (see :func:`mmdyn.converters.reading.read_checkpoint`), or
            not all parameters of the dense model, output norms aside, or some of another
            shape, or more blocks in a stage.
    """
    known = ('Pretrained', 'PretrainedInit')
    if type_name(init_cfg) not in known or 'checkpoint' not in init_cfg:
        raise ValueError(
            f"init_cfg must be dict(type='Pretrained', checkpoint=…) or None, got {init_cfg}"
        )
    source = init_cfg['checkpoint']
    name = timm_model_name(source)
    print_log(f'Loads checkpoint from {source}', logger='current')
    checkpoint = load_checkpoint(source) if name is None else timm_weights(name)
    try:
        state = to_our_names(backbone_weights(checkpoint, init_cfg.get('prefix')), model)
        if hasattr(model, 'adapt_state_dict'):
            state = model.adapt_state_dict(state)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    own = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    # Which fast paths and output norms there are depends on the model's arguments, and so do its
    # buffers.
    state = {
        key: value
        for key, value in state.items()
        if key in parameters or not (key in own or 'fast_path' in key or OUTPUT_NORM.fullmatch(key))
    }
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch's way to say that shapes differ
        why = ' '.join(str(error).split())
        raise ValueError(
            f'{source} is of another model than {type(model).__name__}: {why}'
        ) from error
    dense = dense_names(model)
    if lost := [key for key in missing if key in dense]:
        found = f'only {len(dense) - len(lost)} of {len(dense)} parameters'
        raise ValueError(
            f'{source} holds {found if len(lost) < len(dense) else "no parameter"} of '
            f'{type(model).__name__}, its predictors and fast paths aside: '
            f'{", ".join(lost[:3])} ... are missing (it holds e.g. '
            f'{next(iter(state), "nothing")!r}); take the whole file of a model of the same depths '
            "and options, or set the backbone's arguments to those of the file"
        )
    deeper = [key for key in unexpected if re.sub(*_FIRST_BLOCK, key) in parameters]
    if deeper:
        raise ValueError(
            f'{source} is of a deeper {type(model).__name__}: it holds {len(deeper)} parameters of '
            f"further blocks, e.g. {deeper[0]}; set the backbone's depths to the file's, or take "
            'another file'
        )
    partial = [key for key in missing if is_new(key)] if any(map(is_new, state)) else []
    if partial or unexpected:
        print_log(
            f'{source}: {len(partial)} parameters of predictors and fast paths are missing '
            f'({", ".join(partial[:5])}), {len(unexpected)} parameters are unknown '
            f'({", ".join(map(ascii, unexpected[:5]))})',
            logger='current',
            level=logging.WARNING,
        )


# Of a stage; a plain ViT may be cut short on purpose.
_FIRST_BLOCK = (r'^(stages\.[0-9]+\.(?:blocks\.)?)[0-9]+\.', r'\g<1>0.')


def dense_names(model: nn.Module, prefix: str = '') -> list[str]:
    """Names of the parameters that every dense checkpoint of a backbone's architecture holds.

    Which output norms there are depends on the outputs that were asked for.

    Args:
        model: a sparse backbone.
        prefix: goes before each.
    """
    names = (name for name, _ in model.named_parameters())
    return [prefix + k for k in names if not (is_new(k) or OUTPUT_NORM.fullmatch(k))]
