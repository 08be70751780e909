"""Trains models unless already trained; the two models of the demo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdyn.analysis.evaluating import Advance
from mmdyn.analysis.progress import Meter, quietly
from mmdyn.engine.config import load_config, set_resume
from mmdyn.engine.prepare import build_runner, prepare_training
from mmdyn.whole_files import write_text

DENSE, SPARSE = 'mmdyn::upernet_swin_mini.py', 'mmdyn::upernet_dynswin_mini_ft.py'
WORK_DIR = Path('work_dirs/demo')
_STAGES = {
    DENSE: ('dense', 'training the dense model', 1.0),
    SPARSE: ('sparse', 'training the sparse model', 1.3),
}
"""By config: folder, label and relative cost of an iteration."""
TRAINED = 'trained.txt'
"""File with the hash of a completed training, beside its checkpoint."""
ITERATIONS = 300
"""Of each training: two thirds of the configs', for a demo of minutes."""


class _Progress(Hook):
    """Reports every iteration."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        """Report the iteration."""
        self.advance()


def train(
    config: str,
    work_dir: Path,
    *,
    seed: int,
    load_from: str | None = None,
    advance: Advance = lambda: None,
    cfg_options: dict[str, Any] | None = None,
    data_root: str | None = None,
    prepare: Callable[[Runner], None] = lambda runner: None,
) -> str:
    """Train a config unless the folder has the result; returns the checkpoint.

    An interrupted training of the same recipe is resumed from its last checkpoint; checkpoints of
    another recipe in the folder are removed.

    Args:
        config, work_dir, load_from, cfg_options, data_root: see ``tools/train.py``.
        seed: of the training.
        advance: called after every iteration.
        prepare: called with the runner before training.
    """
    options = {
        **(cfg_options or {}),
        'randomness.seed': seed,
        # Runners in one process share a visualizer of the same name, including its folder.
        'visualizer.name': str(work_dir),
    }
    if load_from is not None:
        options['load_from'] = load_from
    settings = dict(work_dir=str(work_dir), cfg_options=options, data_root=data_root)
    cfg, notes = prepare_training(config, **settings)
    last = work_dir / f'iter_{cfg.train_cfg.max_iters}.pth'
    # Written when training starts, and when it is done.
    started, stamp = work_dir / 'started.txt', work_dir / TRAINED
    recipe = _recipe(cfg.pretty_text, load_from)
    if not last.exists() or not _says(stamp, recipe):
        if _says(started, recipe):
            notes.append(set_resume(cfg, 'auto') or '')
        else:  # nothing to resume from: what is there is another recipe's
            for old in (work_dir / 'last_checkpoint', *work_dir.glob('iter_*.pth')):
                old.unlink(missing_ok=True)
        write_text(started, recipe)
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None  # evaluated afterwards
        stamp.unlink(missing_ok=True)  # of another training, whose checkpoint will be replaced
        with quietly():
            runner = build_runner(cfg, notes)
            runner.register_hook(_Progress(advance))
            prepare(runner)
            runner.train()
        write_text(stamp, recipe)
    return str(last)


def _says(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


def _recipe(config: str, load_from: str | None) -> str:
    """Hash of config, seed and initial weights."""
    digest = hashlib.sha256(config.encode())
    if load_from is not None:
        digest.update(Path(load_from).read_bytes())
    return digest.hexdigest()


def find_checkpoints(work_dir: Path) -> tuple[str, str] | None:
    """Checkpoints of the dense and the sparse model; None unless both were trained."""
    found = []
    for folder, *_ in _STAGES.values():
        found.append(work_dir / folder / f'iter_{ITERATIONS}.pth')
    return tuple(map(str, found)) if all(path.is_file() for path in found) else None


def costs(cfg_options: dict[str, Any] | None = None) -> dict[str, float]:
    """Relative costs of the stages of :func:`train_both`, for a :class:`Meter`."""
    return {
        stage: weight * _iterations(config, cfg_options)
        for config, (_, stage, weight) in _STAGES.items()
    }


def train_both(
    work_dir: Path, *, seed: int, meter: Meter, cfg_options: dict[str, Any] | None = None
) -> tuple[str, str]:
    """Train the dense model and, from its weights, the sparse one; returns their checkpoints.

    Completed trainings are skipped. ``meter`` has the stages of :func:`costs`.
    """
    done: list[str] = []
    for config, (folder, stage, _) in _STAGES.items():
        with meter.stage(stage, _iterations(config, cfg_options)) as advance:
            options = _shortened(config, cfg_options)
            settings = dict(seed=seed, advance=advance, cfg_options=options)
            start = done[0] if done else None
            done.append(train(config, work_dir / folder, load_from=start, **settings))
    return done[0], done[1]


def _shortened(config: str, cfg_options: dict[str, Any] | None) -> dict[str, Any]:
    """Options of a shorter schedule; ``cfg_options`` come first."""
    options = {
        'train_cfg.max_iters': ITERATIONS,
        'param_scheduler.1.end': ITERATIONS,
        'default_hooks.checkpoint.interval': ITERATIONS,
    }
    if config == SPARSE:
        options['custom_hooks.0.phases.0.begin'] = ITERATIONS // 3
    return {**options, **(cfg_options or {})}


def _iterations(config: str, cfg_options: dict[str, Any] | None = None) -> int:
    return load_config(config, _shortened(config, cfg_options)).train_cfg.max_iters
