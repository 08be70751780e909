"""Checks for errors in a config that would otherwise appear late or with unclear messages.

They read the config and its checkpoints, and build nothing.
"""

import importlib.util
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, OPTIMIZERS

from mmdyn.checks import MAX_SEED, check_integer
from mmdyn.compat import HOSTS
from mmdyn.config_parts import class_of, is_pretrained, parts
from mmdyn.converters.checkpoint_files import check_checkpoint

_DICTS = (
    'model',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'train_cfg',
    'val_cfg',
    'test_cfg',
    'optim_wrapper',
    'default_hooks',
    'env_cfg',
    'randomness',
    'visualizer',
)
_CHECKPOINT_KEYS = ('pretrained', 'teacher_checkpoint', 'teacher_ckpt')


def check_shape(cfg: Config) -> None:
    """Check that the parts of a config have the right types.

    Raises:
        TypeError: if a part is not a dict, the hooks not a list, or the work directory not text.
        ValueError: if the ``default_scope`` is not a package, or the seed is invalid.
    """
    found = {key: cfg.get(key) for key in _DICTS}
    for part in ('backbone', 'neck', 'decode_head'):
        if isinstance(found['model'], dict):
            found[f'model.{part}'] = found['model'].get(part)
    several = ('model.neck', 'model.decode_head')  # mmdet chains necks, cascades have several heads
    for key, value in found.items():
        if not isinstance(value, dict | list | tuple | None if key in several else dict | None):
            raise TypeError(
                f"the config's {key} must be a dict, got {value!r}: set its keys, {key}.…"
            )
    hooks = cfg.get('custom_hooks')
    if not isinstance(hooks, list | tuple | None):
        raise TypeError(f"the config's custom_hooks must be a list of dicts, got {hooks!r}")
    if not isinstance(cfg.get('work_dir'), str | None):
        raise TypeError(f"the config's work_dir must be a path, got {cfg.work_dir!r}")
    scope = cfg.get('default_scope')
    known = (None, 'mmdyn', 'mmengine', *HOSTS, *MODELS.children)
    if scope not in known and not (isinstance(scope, str) and importlib.util.find_spec(scope)):
        raise ValueError(
            f"the config's default_scope {scope!r} is not a package: set it to the host's name, "
            f'{" or ".join(map(repr, HOSTS))}'
        )
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None:
        check_integer('randomness.seed', seed, 0, MAX_SEED)


def check_complete(cfg: Config, kind: str) -> None:
    """Check that a config has all parts needed for 'train', 'val' or 'test'.

    Raises:
        ValueError: if something is missing.
    """
    if cfg.get('model') is None:
        raise ValueError(
            'the config has no model: give the complete config of a segmentor, detector or '
            'classifier'
        )
    keys: tuple[str, ...] = (f'{kind}_dataloader', f'{kind}_cfg', f'{kind}_evaluator')
    if kind == 'train':
        keys = ('train_dataloader', 'train_cfg', 'optim_wrapper')
    missing = [key for key in keys if cfg.get(key) is None]
    optional = kind == 'val'
    if missing and not (optional and len(missing) == len(keys)):
        raise ValueError(
            f'the config does not set {", ".join(missing)}: set {", ".join(keys)}'
            f'{", or none of them" if optional else ""}'
        )


def check_training(cfg: Config) -> None:
    """Check settings that mmengine reads only during training, or ignores.

    Raises:
        KeyError: if there is no such optimizer.
        TypeError, ValueError: if a number is invalid, or something is missing.
    """
    check_complete(cfg, 'train')
    check_complete(cfg, 'val')
    for key in ('max_iters', 'max_epochs', 'val_interval'):
        value: Any = cfg.train_cfg.get(key)
        if value is not None:
            # mmengine accepts 5e4 for 50000.
            whole = isinstance(value, float) and value.is_integer()
            check_integer(f'train_cfg.{key}', int(value) if whole else value)
    name = (cfg.optim_wrapper.get('optimizer') or {}).get('type')
    if name is not None and class_of(name, cfg.get('default_scope'), OPTIMIZERS) is None:
        raise KeyError(f'optim_wrapper.optimizer.type={name!r} is unknown: use one such as AdamW')


def check_checkpoints(cfg: Config, trust: bool = False) -> None:
    """Check every local checkpoint of a training config, including ``load_from``.

    Raises:
        FileNotFoundError, ValueError: see :func:`check_checkpoint`; names the config's key.
    """
    named = {}
    for place, part in parts(cfg.get('model'), 'model'):
        # Of a Pretrained initialisation or a teacher.
        loads = is_pretrained(part) or place.endswith('.teacher')
        keys = _CHECKPOINT_KEYS + (('checkpoint',) if loads else ())
        named |= {f'{place}.{key}': part.get(key) for key in keys}
    named = {key: path for key, path in named.items() if isinstance(path, str)}
    if cfg.get('load_from'):
        named['load_from'] = cfg.load_from
    for key, path in named.items():
        try:
            check_checkpoint(path, trust)
        except (OSError, ValueError) as error:
            raise type(error)(f'{key}: {error}') from error
