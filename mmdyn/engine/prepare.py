"""The whole way from command-line values to a Runner, for training and for testing.

Whatever can be wrong with what the user gave is found here, before a model is
built, as a ValueError, FileNotFoundError, TypeError or KeyError.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

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
    """Makes the config of a training and checks that its data and checkpoints are there.

    The work directory is this process' until it ends: another training there is refused.
    Adds ``mmdyn.RngStateHook`` and ``mmdyn.CheckpointHook``, and puts our adapter in place of a
    stock model that has a sparse backbone.

    Args:
        config: Path of the config, or 'mmdyn::<name>.py'.
        work_dir: Where logs and checkpoints go; None for the config's, else
            ``./work_dirs/<config's stem>``.
        resume: A checkpoint, 'auto' for the latest in the work directory, or None.
        amp: Train with mixed precision.
        auto_scale_lr: Scale the learning rate with the total batch size.
        data_root: Where the data lie, in place of the folder that the config names.
        cfg_options: Overrides, keys with dots.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'; see ``prepare_cpu_distributed``.
        trust_checkpoint: Read checkpoints that hold more than data.

    Returns:
        The config, and lines for the log.

    Raises:
        FileNotFoundError: If the config, data or a checkpoint is missing.
        ValueError: If something given does not fit, or another process trains there.
        KeyError: If a data set's type is unknown.
    """
    cfg = _load(config, work_dir, data_root, cfg_options, launcher, trust_checkpoint)
    # First: nothing else is as likely to be missing, and it does not need the models.
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
    """Makes the config of an evaluation and checks that its data and checkpoint are there.

    Args:
        config: Path of the config, or 'mmdyn::<name>.py'.
        checkpoint: Path or address of the weights.
        work_dir: The metrics are written there as JSON. This, ``data_root``, ``cfg_options``,
            ``launcher`` and ``trust_checkpoint`` are as for :func:`prepare_training`.
        out: Where predictions go: a .pkl file (detectors), a folder (segmentors).
        show: Draw predictions in windows.
        show_dir: Save drawings of predictions there.
        wait_time: How long a window stays, in seconds.
        tta: Augment at test time.
        keep_ratio: The first predictor's keep ratio; the others fall from it.
        keep_ratios: The keep ratio of each predictor.

    Returns and raises as :func:`prepare_training`.
    """
    cfg = _load(config, work_dir, data_root, cfg_options, launcher, trust_checkpoint)
    check_complete(cfg, 'test')
    cfg.load_from, cfg.resume = checkpoint, False
    check_checkpoint(checkpoint, trust_checkpoint)
    check_data(cfg, ('test_dataloader',))
    check_model(cfg, ('test_dataloader',))
    notes = [_use_adapter(cfg, training=False)]
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


# What of a Runner loads checkpoints, and what builds classes of the user's own, which may.
_LOADING = ('train', 'val', 'test', 'load_or_resume', 'load_checkpoint', 'resume')
_BUILDING = ('build_train_loop', 'build_val_loop', 'build_test_loop')


def build_runner(cfg: Config, notes: Sequence[str] = ()) -> Runner:
    """Build the Runner, its model too, and put the notes into its log.

    It reads checkpoints as data only unless ``trust_checkpoint=True`` was given on preparing
    the config; see :func:`mmdyn.guard.checkpoints_as_data`. From then on this process writes
    files whole or not at all. ``cfg.runner_type`` may name another Runner than mmengine's.

    Raises:
        ValueError: If the processes of a distributed run are to go on from different checkpoints.
    """
    write_whole()
    trust = cfg.get('trust_checkpoint')
    with checkpoints_as_data(trust):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        _check_processes_agree(cfg)
        name_bad_files(runner)
        if isinstance(runner, FlexibleRunner):
            # Now and not when the training starts: what is wrong in its config is the user's to
            # put right, and a teacher can be copied only while the parameters are whole.
            runner.model = runner.strategy.build_model(runner.model)
    for name in (*_LOADING, *_BUILDING):
        setattr(runner, name, checkpoints_as_data(trust)(getattr(runner, name)))
    for note in notes:
        runner.logger.info(note)
    return runner


class TellStart(Hook):
    """Calls ``tell`` before each iteration: at the first, all it needs is built and loaded."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell

    def before_train_iter(self, *_: Any, **__: Any) -> None:
        """See the class."""
        self.tell()

    before_test_iter = before_train_iter


def _load(
    config: str,
    work_dir: str | None,
    data_root: str | None,
    options: dict[str, Any] | None,
    launcher: str,
    trust: bool,
) -> Config:
    """What a training and a test have in common."""
    cfg = edit.load_config(config, options)
    # For build_runner; noted where it is the exception.
    cfg.pop('trust_checkpoint', None)
    if trust:
        cfg.trust_checkpoint = True
    cfg.launcher = launcher
    edit.set_work_dir(cfg, work_dir, config)
    if data_root is not None:
        edit.set_data_root(cfg, data_root)
    return cfg


def _check_processes_agree(cfg: Config) -> None:
    """Each process has looked for the latest checkpoint by itself, on the disk of its machine."""
    if get_world_size() == 1:
        return
    name = os.path.basename(cfg.load_from) if cfg.get('load_from') else None
    plans = all_gather_object(
        f'goes on from {name}' if cfg.get('resume') else f'starts with {name}'
    )
    if len(set(plans)) > 1:
        each = ', '.join(f'process {rank} {plan}' for rank, plan in enumerate(plans))
        raise ValueError(
            f'the ranks disagree on which checkpoint to start from: {each}. Put the work '
            f'directory ({cfg.work_dir}) on a disk that all machines share, or copy the checkpoint '
            'to each'
        )


def _use_adapter(cfg: Config, training: bool) -> str | None:
    # Here and not at the top: it imports the hosts' models, seconds that a check should not take.
    from mmdyn.models.adapters import use_adapter

    return use_adapter(cfg, training=training)
