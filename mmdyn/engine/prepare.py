"""From command-line values to a Runner, for training and testing.

User errors are found before a model is built, as ValueError, FileNotFoundError, TypeError or
KeyError.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from mmdyn.config_parts import type_name
from mmdyn.converters.checkpoint_files import check_checkpoint
from mmdyn.engine import config as edit
from mmdyn.engine import evaluation
from mmdyn.engine.config_check import check_checkpoints, check_complete, check_training
from mmdyn.engine.data_check import check_data
from mmdyn.engine.distributed import prepare_cpu_distributed
from mmdyn.engine.holding import hold
from mmdyn.engine.host_files import write_whole
from mmdyn.engine.loaders import name_bad_files
from mmdyn.engine.metrics import add_kept_fraction
from mmdyn.engine.model_check import check_model
from mmdyn.guard import checkpoints_as_data


def prepare_training(
    config: str,
    *,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    data_root: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
    trust_checkpoint: bool = False,
) -> tuple[Config, list[str]]:
    """Make the config of a training and check its data and checkpoints.

    Locks the work directory for this process: another training there is refused. Adds
    ``mmdyn.RngStateHook`` and ``mmdyn.CheckpointHook``, and replaces a stock model with a sparse
    backbone by our adapter.

    Args:
        config: path of the config, or 'mmdyn::<name>.py'.
        work_dir: folder for logs and checkpoints; None for the config's, else
            ``./work_dirs/<config's stem>``.
        resume: a checkpoint, 'auto' for the latest in the work directory, or None.
        amp: train with mixed precision.
        auto_scale_lr: scale the learning rate with the total batch size.
        data_root: folder of the data, instead of the config's.
        cfg_options: overrides, keys with dots.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'; see ``prepare_cpu_distributed``.
        trust_checkpoint: read checkpoints without restrictions.

    Returns:
        The config, and lines for the log.

    Raises:
        FileNotFoundError: if the config, data or a checkpoint is missing.
        ValueError: if an argument does not fit, or another process trains there.
        KeyError: if a data set's type is unknown.
    """
    cfg = _load(config, work_dir, data_root, cfg_options, launcher, trust_checkpoint)
    # First, since missing data are the most likely error and checking needs no models.
    loaders = ('train_dataloader', 'val_dataloader')
    check_data(cfg, loaders)
    check_training(cfg)
    check_model(cfg, loaders)
    notes = [_use_adapter(cfg, training=True)]
    add_kept_fraction(cfg, 'val_evaluator')
    if amp:
        notes.append(edit.enable_amp(cfg))
    if auto_scale_lr:
        edit.enable_auto_scale_lr(cfg)
    hold(cfg)
    notes.append(edit.set_teacher(cfg, resume))
    notes.append(edit.set_resume(cfg, resume, trust_checkpoint))
    edit.add_rng_state_hook(cfg)
    edit.set_checkpoint_hook(cfg)
    check_checkpoints(cfg, trust_checkpoint)
    notes.append(prepare_cpu_distributed(cfg))
    return cfg, [note for note in notes if note]


def prepare_testing(
    config: str,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2.0,
    tta: bool = False,
    keep_ratio: float | None = None,
    keep_ratios: Sequence[float] | None = None,
    data_root: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
    trust_checkpoint: bool = False,
) -> tuple[Config, list[str]]:
    """Make the config of an evaluation and check its data and checkpoint.

    Args:
        config: path of the config, or 'mmdyn::<name>.py'.
        checkpoint: path or address of the weights.
        work_dir: folder for the metrics as JSON. This, ``data_root``, ``cfg_options``,
            ``launcher`` and ``trust_checkpoint`` are as in :func:`prepare_training`.
        out: for predictions: a .pkl file (detectors) or a folder (segmentors).
        show: draw predictions in windows.
        show_dir: folder for drawings of predictions.
        wait_time: how long a window is shown, in seconds.
        tta: use test-time augmentation.
        keep_ratio: of the first predictor; later ones decrease from it.
        keep_ratios: one per predictor.

    Returns and raises like :func:`prepare_training`.
    """
    cfg = _load(config, work_dir, data_root, cfg_options, launcher, trust_checkpoint)
    check_complete(cfg, 'test')
    cfg.load_from, cfg.resume = checkpoint, False
    check_checkpoint(checkpoint, trust_checkpoint)
    check_data(cfg, ('test_dataloader',))
    check_model(cfg, ('test_dataloader',))
    notes = [_use_adapter(cfg, training=False)]
    # A loaded checkpoint's weights are the averaged ones already.
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if type_name(hook) != 'EMAHook']
    add_kept_fraction(cfg, 'test_evaluator')
    edit.set_keep_ratios(cfg, keep_ratio, None if keep_ratios is None else list(keep_ratios))
    if show or show_dir is not None:
        evaluation.set_drawing(cfg, show, show_dir, wait_time)
    if tta:
        notes.append(evaluation.use_tta(cfg))
    if out is not None:
        evaluation.set_out(cfg, out)
    notes.append(prepare_cpu_distributed(cfg))
    return cfg, [note for note in notes if note]


# Methods of a Runner that load checkpoints, or build custom classes that may.
_LOADING = ('train', 'val', 'test', 'load_or_resume', 'load_checkpoint', 'resume')
_BUILDING = ('build_train_loop', 'build_val_loop', 'build_test_loop')


def build_runner(cfg: Config, notes: Sequence[str] = ()) -> Runner:
    """Build the Runner with its model, and log the notes.

    It reads checkpoints as data only unless the config was prepared with ``trust_checkpoint=True``;
    see :func:`mmdyn.guard.checkpoints_as_data`. From then on this process writes files atomically.
    ``cfg.runner_type`` may select another Runner than mmengine's.

    Raises:
        ValueError: if the ranks of a distributed run disagree on the checkpoint to start from.
    """
    write_whole()
    trust = cfg.get('trust_checkpoint')
    with checkpoints_as_data(trust):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        _check_processes_agree(cfg)
        name_bad_files(runner)
        if isinstance(runner, FlexibleRunner):
            # Not only when training starts: errors in its config are the user's, and a teacher can
            # be copied only before parameters are sharded.
            runner.model = runner.strategy.build_model(runner.model)
    for name in (*_LOADING, *_BUILDING):
        setattr(runner, name, checkpoints_as_data(trust)(getattr(runner, name)))
    for note in notes:
        runner.logger.info(note)
    return runner


class IterationCallback(Hook):
    """Calls a function before each iteration; at the first one everything is built and loaded."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback

    def before_train_iter(self, *_: Any, **__: Any) -> None:
        """See the class."""
        self.callback()

    before_test_iter = before_train_iter


def _load(
    config: str,
    work_dir: str | None,
    data_root: str | None,
    options: dict[str, Any] | None,
    launcher: str,
    trust: bool,
) -> Config:
    """Shared by training and testing."""
    cfg = edit.load_config(config, options)
    # For build_runner; stored only if set.
    cfg.pop('trust_checkpoint', None)
    if trust:
        cfg.trust_checkpoint = True
    cfg.launcher = launcher
    edit.set_work_dir(cfg, work_dir, config)
    if data_root is not None:
        edit.set_data_root(cfg, data_root)
    return cfg


def _check_processes_agree(cfg: Config) -> None:
    """Check that ranks, which look for the latest checkpoint on their own disks, agree."""
    if get_world_size() == 1:
        return
    name = os.path.basename(cfg.load_from) if cfg.get('load_from') else None
    plans = all_gather_object(
        f'resumes from {name}' if cfg.get('resume') else f'starts with {name}'
    )
    if len(set(plans)) > 1:
        each = ', '.join(f'process {rank} {plan}' for rank, plan in enumerate(plans))
        raise ValueError(
            f'the ranks disagree on which checkpoint to start from: {each}. Put the work '
            f'directory ({cfg.work_dir}) on a disk shared by all machines, or copy the checkpoint '
            'to each'
        )


def _use_adapter(cfg: Config, training: bool) -> str | None:
    # Not at the top: it imports the hosts' models, which takes seconds.
    from mmdyn.models.adapters import use_adapter

    return use_adapter(cfg, training=training)
