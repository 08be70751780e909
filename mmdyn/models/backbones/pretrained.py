"""Loading a dense checkpoint into a sparse backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

# The parameters a sparse backbone has and a dense checkpoint has not.
NEW_PARAMETERS = ('predictors.', 'fast_path')


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


def unwrap_state_dict(checkpoint: Mapping[str, Any], prefix: str | None = None) -> dict[str, Any]:
    """Find the backbone's weights in a checkpoint.

    Args:
        checkpoint: a state dict, or one under ``state_dict`` or ``model``; the
            keys may start with ``module.``, and with ``backbone.`` in a whole
            segmentor or detector, whose other parts are left out.
        prefix: the backbone's prefix in it; None = ``backbone.`` if it occurs.

    Returns:
        Weights under the backbone's own names.

    Raises:
        ValueError: if ``prefix`` is given and no key starts with it.
    """
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    state = {key.removeprefix('module.'): value for key, value in checkpoint.items()}
    prefix = 'backbone.' if prefix is None else prefix.rstrip('.') + '.'
    inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not inner and prefix != 'backbone.':
        raise ValueError(
            f'no key of the checkpoint starts with {prefix!r}; '
            f'it holds e.g. {next(iter(state), "nothing")!r}'
        )
    return inner or state


def load_pretrained(model: nn.Module, init_cfg: Mapping[str, Any]) -> None:
    """Load the checkpoint that ``init_cfg`` names; new parameters stay as they are.

    The model may offer ``adapt_state_dict(state) -> state`` to convert names or
    resize tables.

    Args:
        model: a sparse backbone.
        init_cfg: ``dict(type='Pretrained', checkpoint=path_or_url, prefix=None)``.

    Raises:
        ValueError: if ``init_cfg`` is of another type, or the checkpoint holds
            none of the model's parameters.
    """
    if init_cfg.get('type') != 'Pretrained' or 'checkpoint' not in init_cfg:
        raise ValueError(
            f"init_cfg must be dict(type='Pretrained', checkpoint=…) or None, got {dict(init_cfg)}"
        )
    source = init_cfg['checkpoint']
    checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='current')
    state: dict[str, Tensor] = unwrap_state_dict(checkpoint, init_cfg.get('prefix'))
    if hasattr(model, 'adapt_state_dict'):
        state = model.adapt_state_dict(state)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if len(missing) == len(model.state_dict()):
        raise ValueError(
            f'{source} holds no parameter of {type(model).__name__}: '
            f'e.g. {next(iter(state), "nothing")!r} is not one of its names'
        )
    # Buffers follow from the model's arguments.
    parameters = {name for name, _ in model.named_parameters()}
    lost = [k for k in missing if k in parameters and not any(n in k for n in NEW_PARAMETERS)]
    if lost or unexpected:
        print_log(
            f'{source}: {len(lost)} parameters of the dense model are missing '
            f'({", ".join(lost[:5])}), {len(unexpected)} are unknown '
            f'({", ".join(unexpected[:5])})',
            logger='current',
            level=logging.WARNING,
        )
