"""Loading of weights into a model, with a report of what is missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmdyn.config_parts import type_name
from mmdyn.converters.additions import is_dense, is_new
from mmdyn.converters.architecture import OUTPUT_NORM
from mmdyn.converters.formats import to_our_names, weights_of
from mmdyn.guard import load_checkpoint
from mmdyn.models.deciding import Deciding

_KEEP_EVERYTHING = (
    '--keep-ratio 1 (--dense of export.py), --cfg-options model.decode_head.tile_ratio=1 for a '
    'head that chooses tiles, the stock neck and rpn_head instead of sparse ones'
)


@dataclass(frozen=True)
class Report:
    """What was missing or unused when a model loaded a state dict.

    Attributes:
        source: of the state dict, for messages.
        missing: names of parameters and running statistics without a value, including those of
            another shape and fast paths initialised as copies of dense layers.
        unexpected: unused keys.
        wrong: torch's message on the first shape mismatch; '' = none.
    """

    source: str = ''
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong: str = ''

    def check_in_use(self, model: nn.Module, any_ratio: bool = False) -> None:
        """Refuse a checkpoint that lacks weights needed for prediction at the current ratios.

        Auxiliary heads may be missing, and so may predictors and fast paths of modules that keep
        everything; with ``any_ratio``, for ratios that change later, predictors may not.

        Raises:
            ValueError: if weights are missing.
        """
        dense = [k for k in self.missing if not (is_new(k) or k.startswith('auxiliary_head.'))]
        if dense:
            raise ValueError(
                f"{self.source} lacks {len(dense)} of the model's tensors, e.g. {dense[0]}: give a "
                f'checkpoint of the whole {type(model).__name__} of this config'
                + (f'. {self.wrong}' if self.wrong else '')
            )
        named = model.named_modules()
        deciding = {f'{name}.': part for name, part in named if isinstance(part, Deciding)}
        idle = tuple(name for name, part in deciding.items() if part.lowest_ratio == 1)
        if any_ratio:
            idle = ()
        elif len(idle) == len(deciding):
            idle = ('',)  # the other new parameters follow the tiles of such a module
        if new := [k for k in self.missing if is_new(k) and not k.startswith(idle)]:
            raise ValueError(
                f'{self.source} is a dense checkpoint: {len(new)} parameters of predictors and '
                f'fast paths, e.g. {new[0]}, would be untrained. Train the sparse model first, or '
                'test the dense one with the stock config'
                + ('' if any_ratio else f', or keep everything: {_KEEP_EVERYTHING}')
            )


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, *, shapes_may_differ: bool = False
) -> Report:
    """Load a state dict, ignoring keys that the model does not have.

    Args:
        model, state: the model and the state dict.
        source: of the state dict, for messages.
        shapes_may_differ: whether to skip tensors of another shape instead of raising.

    Raises:
        ValueError: if shapes differ, a module can't load its part, or nothing fits.
    """
    keys: list[Any] = []
    hook = model.register_load_state_dict_post_hook(lambda _, found: keys.append(found))
    text, wrong = '', ''
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # raised on shape mismatches, after loading the rest
        text = str(error)
        lines = text.split('\n')
        wrong = ' '.join(map(str.strip, lines[:3])) + ' ...' * (len(lines) > 3)
        wrong = re.sub(r'torch\.Size\(\[(.*?)\]\)', r'(\1)', wrong)
        if not (shapes_may_differ and keys):
            name = type(model).__name__
            raise ValueError(f'{source} does not fit {name}: {wrong}') from error
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    finally:
        hook.remove()
    differing = re.findall(r'(?:mismatch for|named) "?([^\s":]+)', text)
    absent = {*keys[-1].missing_keys, *differing}
    parameters = [name for name, _ in model.named_parameters()]
    names = parameters + [name for name, _ in model.named_buffers() if '.running_' in name]
    missing = [k for k in names if k in absent or (is_new(k) and k not in state)]
    if set(parameters) <= set(missing):
        found = next(((key, tuple(value.shape)) for key, value in state.items()), 'nothing')
        raise ValueError(
            f'{source} has no parameter with a name and shape of {type(model).__name__} (it has '
            f'e.g. {found}): give a checkpoint of the whole {type(model).__name__} of this config; '
            'weights of a backbone alone go into '
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=PATH)"
        )
    return Report(source, tuple(missing), tuple(keys[-1].unexpected_keys), wrong)


def pretrained_init_cfg(
    pretrained: str | None, init_cfg: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Translate the hosts' deprecated argument ``pretrained`` to ``init_cfg``.

    Raises:
        ValueError: if both are given.
    """
    if pretrained is None:
        return init_cfg
    if init_cfg:
        raise ValueError(
            f'give either pretrained={pretrained!r} or init_cfg={init_cfg}; prefer init_cfg'
        )
    return dict(type='Pretrained', checkpoint=pretrained)


def load_pretrained(model: nn.Module, init_cfg: Mapping[str, Any]) -> None:
    """Load the dense checkpoint of an ``init_cfg``; new parameters are left unchanged.

    Its layout is recognised by its keys, see ``mmdyn.converters.formats.FORMATS``; keys of no known
    layout are taken as the model's own. Of a whole segmentor or detector, the backbone is used. The
    model may define ``adapt_state_dict(state) -> state`` to resize tables.

    Args:
        model: a sparse backbone.
        init_cfg: ``dict(type='Pretrained', checkpoint=source, prefix=None)``; source as in
            :func:`mmdyn.guard.load_checkpoint`; the prefix of the backbone's keys defaults to
            ``backbone.`` if it occurs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ``init_cfg`` is of another type, the checkpoint contains objects other than
            data (see :func:`mmdyn.converters.checkpoint_files.read_checkpoint`), parameters of the
            dense model (except output norms) are missing or have another shape, or a stage has
            more blocks.
    """
    if type_name(init_cfg) not in ('Pretrained', 'PretrainedInit') or 'checkpoint' not in init_cfg:
        raise ValueError(
            f"init_cfg must be dict(type='Pretrained', checkpoint=…) or None, got {init_cfg}"
        )
    source = init_cfg['checkpoint']
    print_log(f'Loads checkpoint from {source}', logger='current')
    checkpoint = load_checkpoint(source)
    try:
        state = to_our_names(_backbone_weights(checkpoint, init_cfg.get('prefix')), model)
        if hasattr(model, 'adapt_state_dict'):
            state = model.adapt_state_dict(state)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    own = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    # Fast paths, output norms and other buffers depend on the model's arguments.
    state = {
        key: value
        for key, value in state.items()
        if key in parameters
        or _is_statistic(key)
        or not (key in own or 'fast_path' in key or OUTPUT_NORM.fullmatch(key))
    }
    report = load_weights(model, state, source)
    dense = dense_names(model)
    lost = [key for key in report.missing if key in dense]
    # In a stage only; a plain ViT may be truncated on purpose.
    block = re.compile(r'^(stages\.[0-9]+\.(?:blocks\.)?)[0-9]+\.')
    deeper = [key for key in report.unexpected if block.sub(r'\g<1>0.', key) in parameters]
    if lost or deeper:
        raise ValueError(
            f'{source} does not fit this {type(model).__name__}: of {len(dense)} dense parameters '
            f'{len(lost)} are missing ({", ".join(lost[:3])}), and {len(deeper)} are of further '
            f"blocks ({', '.join(deeper[:3])}); set the backbone's depths and options to the "
            "file's, or use another file"
        )
    partial = [] if is_dense(state) else list(filter(is_new, report.missing))
    if partial or report.unexpected:
        print_log(
            f'{source}: {len(partial)} parameters of predictors and fast paths are missing '
            f'({", ".join(partial[:5])}), {len(report.unexpected)} parameters are unknown '
            f'({", ".join(map(ascii, report.unexpected[:5]))})',
            logger='current',
            level=logging.WARNING,
        )


def _backbone_weights(checkpoint: Any, prefix: str | None) -> dict[str, Tensor]:
    """The backbone's weights in a checkpoint; see :func:`load_pretrained`."""
    state, _ = weights_of(checkpoint)
    prefix = 'backbone.' if prefix is None else prefix.rstrip('.') + '.'
    inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not inner and prefix != 'backbone.':
        raise ValueError(
            f'no key of the checkpoint starts with {prefix!r}; it has e.g. {next(iter(state))!r}'
        )
    return inner or state


def _is_statistic(name: str) -> bool:
    """Whether a buffer is a running statistic of a batch norm."""
    return '.running_' in name or name.endswith('.num_batches_tracked')


def dense_names(model: nn.Module, prefix: str = '') -> list[str]:
    """Names of parameters and running statistics in every dense checkpoint of a backbone.

    Output norms are excluded, as they depend on the requested outputs. ``prefix`` is prepended.
    """
    names = [name for name, _ in model.named_parameters()]
    names += [name for name, _ in model.named_buffers() if '.running_' in name]
    return [prefix + k for k in names if not (is_new(k) or OUTPUT_NORM.fullmatch(k))]
