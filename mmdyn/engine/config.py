"""Edits of a config by command-line options, one function each.

They work in place and return a line for the log if necessary.
"""

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

# Registers the scope 'mmdyn'.
from mmdyn import registry as _registry  # noqa: F401
from mmdyn.checks import check_folder, check_integer
from mmdyn.compat import HOSTS, require_host
from mmdyn.config_lookup import resolve_config_path
from mmdyn.config_parts import add_hook, class_of, parts, type_name
from mmdyn.engine.config_check import check_shape
from mmdyn.engine.data_check import leaf_datasets
from mmdyn.engine.resuming import latest_checkpoint
from mmdyn.sparsity.ratios import falling_keep_ratios
from mmdyn.whole_files import NO_ROOM

_DEFAULT_PREDICTORS = 3


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config and apply the user's overrides.

    Args:
        path: a file, or a packaged config such as 'mmdyn::upernet_dynswin_mini.py'.
        options: from ``--cfg-options``, keys with dots.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the host of its ``default_scope`` is not usable, or is mmdet and mmcv lacks
            compiled ops.
        ValueError: if the file cannot be read as a config, or an option does not fit it.
        TypeError: if a part of it has the wrong type.
        OSError: if there is no room for mmengine's copy of it.
    """
    file = resolve_config_path(path)
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # a config is code, which can raise anything
        if isinstance(error, OSError) and error.errno in NO_ROOM:  # from mmengine's copy
            raise
        raise ValueError(f'config {path} cannot be read: {_describe(error)}') from error
    try:
        cfg.merge_from_dict(options or {})
    except Exception as error:
        raise ValueError(f'--cfg-options do not fit config {path}: {_describe(error)}') from error
    check_shape(cfg)
    if cfg.get('default_scope') is None and cfg.get('model'):
        # Pure-Python configs have classes as types and need no scope; infer it from the model.
        classes = getattr(class_of(cfg.model.get('type'), None), '__mro__', ())
        packages = [cls.__module__.partition('.')[0] for cls in classes]
        if host := next((package for package in packages if package in HOSTS), None):
            cfg.default_scope = host
    if cfg.get('default_scope') in HOSTS:
        require_host(cfg.default_scope)
    return cfg


def set_work_dir(cfg: Config, work_dir: str | None, config_path: str) -> None:
    """Set ``cfg.work_dir`` from the command line, the config or the config's name.

    The default is ``./work_dirs/<stem of config_path>``.

    Raises:
        OSError: if it is not writable.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('.', 'work_dirs', Path(config_path.split('::')[-1]).stem)
    check_folder('--work-dir', cfg.work_dir)


def set_data_root(cfg: Config, root: str) -> None:
    """Replace the folder that the config's data sets and metrics read from.

    Raises:
        ValueError: if the config's data sets have no ``data_root``, or several.
    """
    splits = ('train', 'val', 'test')
    leaves = [
        leaf
        for split in splits
        for _, leaf in leaf_datasets(cfg.get(f'{split}_dataloader'))
        if leaf.get('data_root')
    ]
    roots = sorted({os.path.normpath(leaf['data_root']) for leaf in leaves})
    if len(roots) != 1:
        found = ' and '.join(roots) if roots else 'no data_root'
        raise ValueError(
            f'--data-root {root}: it must replace one data_root, but the data sets of the config '
            f'have {found}: set each one with --cfg-options '
            'train_dataloader.dataset.data_root=FOLDER and so on'
        )
    for leaf in leaves:
        leaf['data_root'] = root
    evaluators = [cfg.get(f'{split}_evaluator') for split in splits]
    for _, metric in parts(evaluators, 'evaluators'):
        # Annotations that metrics such as mmdet's CocoMetric read themselves.
        for key in ('ann_file', 'seg_prefix'):
            path = metric.get(key)
            if isinstance(path, str) and os.path.isabs(path) == os.path.isabs(roots[0]):
                below = os.path.relpath(path, roots[0])
                if not below.startswith('..'):
                    metric[key] = os.path.join(root, below)


def enable_amp(cfg: Config) -> str | None:
    """Enable mixed-precision training with dynamic loss scaling.

    Returns:
        A line for the log if it was enabled already.

    Raises:
        ValueError: if the config's optimizer wrapper is neither mmengine's plain one nor its
            mixed-precision one.
    """
    kind = type_name(cfg.get('optim_wrapper') or {}) or 'OptimWrapper'
    if kind == 'AmpOptimWrapper':
        return '--amp: the config already trains with mixed precision.'
    if kind != 'OptimWrapper':
        raise ValueError(
            f"--amp needs optim_wrapper.type='OptimWrapper', the config has {kind!r}: remove "
            '--amp, or change the wrapper'
        )
    cfg.merge_from_dict({'optim_wrapper.type': 'AmpOptimWrapper'})
    cfg.optim_wrapper.loss_scale = 'dynamic'
    return None


def enable_auto_scale_lr(cfg: Config) -> None:
    """Enable mmengine's scaling of the learning rate with the total batch size.

    Raises:
        TypeError, ValueError: if the config has no valid ``auto_scale_lr.base_batch_size``.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            "--auto-scale-lr needs the total batch size of the config's learning rate: add "
            '--cfg-options auto_scale_lr.base_batch_size=16 (or the actual number)'
        )
    check_integer('auto_scale_lr.base_batch_size', cfg.auto_scale_lr['base_batch_size'])
    cfg.auto_scale_lr.enable = True


def set_resume(cfg: Config, resume: str | None, trust: bool = False) -> str | None:
    """Set the checkpoint to resume from; ``cfg.work_dir`` must be set.

    Args:
        cfg: edited in place.
        resume: a checkpoint, 'auto' for the latest whole one in the work directory, or None to
            leave it to the config (whose ``resume=True`` without ``load_from`` means 'auto').
        trust: read checkpoints without restrictions.

    Returns:
        Lines for the log: where training resumes, and which checkpoints were skipped.

    Raises:
        ValueError: if the latest checkpoint contains arbitrary objects and ``trust`` is False.
    """
    if resume is None and cfg.get('resume') and not cfg.get('load_from'):
        resume = 'auto'
    if resume is None:
        return None
    if resume != 'auto':
        cfg.resume, cfg.load_from = True, resume
        return None
    latest, passed_over = latest_checkpoint(cfg, trust)
    # Without one, the config's load_from applies, as on the first start.
    cfg.resume = latest is not None
    passed_over = [f'--resume: skipped: {why}.' for why in passed_over]
    if latest is None:
        found = 'no whole checkpoint' if passed_over else 'no checkpoint'
        where = f'{found} in {cfg.work_dir} yet, training starts from scratch.'
    else:
        cfg.load_from = latest
        where = f'resuming from {latest}.'
    return '\n'.join([*passed_over, f'--resume: {where}'])


def set_teacher(cfg: Config, resume: str | None = None) -> str | None:
    """Replace ``model.teacher='self'`` by the weights of ``load_from``.

    Call it before :func:`set_resume`, which sets that to the checkpoint to resume.

    Raises:
        ValueError: if there is such a teacher without ``load_from``, or that is to be resumed.
    """
    model = cfg.get('model') or {}
    if model.get('teacher') != 'self':
        return None
    named = 'teacher=dict(_delete_=True, checkpoint=PATH)'
    meant = "model.teacher='self' means the dense weights that training starts from, but"
    if not cfg.get('load_from'):
        raise ValueError(
            f'{meant} the config has none: set load_from to them (with --cfg-options '
            f'load_from=PATH), also on resume, or name them in the config, {named}, or disable the '
            'teacher with model.teacher=None'
        )
    if cfg.get('resume') and resume is None:
        raise ValueError(
            f'{meant} with resume=True load_from={cfg.load_from} is the checkpoint to resume: '
            f'use --resume instead, or name the teacher in the config, {named}'
        )
    model['teacher'] = dict(checkpoint=cfg.load_from)
    return f'teacher: the dense model that training starts from, {cfg.load_from}'


def add_rng_state_hook(cfg: Config) -> None:
    """Add ``mmdyn.RngStateHook`` unless the config has it."""
    add_hook(cfg, 'RngStateHook')


def set_checkpoint_hook(cfg: Config) -> None:
    """Replace mmengine's checkpoint hook, which can leave partial files, by mmdyn's.

    Hooks of another type are left alone, and so is mmengine's with strategies that write folders.
    """
    if type_name(cfg.get('strategy') or {}) in ('ColossalAIStrategy', 'DeepSpeedStrategy'):
        return
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    if 'checkpoint' not in cfg.default_hooks:
        cfg.merge_from_dict({'default_hooks.checkpoint.type': 'CheckpointHook'})  # like Runner
    for hook in (cfg.default_hooks['checkpoint'], *(cfg.get('custom_hooks') or [])):
        kind = hook.get('type') if isinstance(hook, dict) else None
        if class_of(kind, cfg.get('default_scope'), HOOKS) is CheckpointHook:
            hook['type'] = 'mmdyn.CheckpointHook'


def set_keep_ratios(
    cfg: Config, keep_ratio: float | None = None, keep_ratios: list[float] | None = None
) -> None:
    """Set the keep ratios of the config's backbone, if given.

    Args:
        cfg: edited in place.
        keep_ratio: of the first predictor; later ones decrease from it, see
            :func:`mmdyn.sparsity.ratios.falling_keep_ratios`, by the attribute
            ``keep_ratio_ladder`` of the backbone's class.
        keep_ratios: one per predictor, validated when the backbone is built.

    Raises:
        ValueError: if the backbone has no keep ratios, or ``keep_ratio`` is outside (0, 1].
    """
    if keep_ratio is None and keep_ratios is None:
        return
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    cls = class_of(backbone.get('type'), cfg.get('default_scope'))
    if not hasattr(cls, 'set_keep_ratios'):
        raise ValueError(
            f'keep ratios need a sparse backbone such as mmdyn.DynamicSwin, the config has '
            f'{backbone.get("type")!r}: remove --keep-ratio(s)'
        )
    if keep_ratio is not None:
        count = len(backbone.get('keep_ratios') or backbone.get('sparse_blocks') or ())
        kind = getattr(cls, 'keep_ratio_ladder', 'linear')
        keep_ratios = falling_keep_ratios(keep_ratio, count or _DEFAULT_PREDICTORS, kind)
    backbone['keep_ratios'] = tuple(keep_ratios)


def _describe(error: Exception) -> str:
    """Type and message of an error, with the line of a syntax error."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f'SyntaxError in line {error.lineno}: {error.msg}'
    return f'{type(error).__name__}: {error}'
