"""The two models of the demo: where they lie, and how they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdyn.analysis import comparison
from mmdyn.analysis.progress import Meter
from mmdyn.engine.config import load_config

DENSE, SPARSE = 'mmdyn::upernet_swin_mini.py', 'mmdyn::upernet_dynswin_mini_ft.py'
WORK_DIR = Path('work_dirs/demo')
_STAGES = {
    DENSE: ('dense', 'training the dense model', 1.0),
    SPARSE: ('sparse', 'training the sparse model', 1.3),
}
"""By config: folder, name and the cost of an iteration, relative to the others."""


def find_checkpoints(work_dir: Path) -> tuple[str, str] | None:
    """The dense and the sparse model's checkpoints; None unless both have been trained.

    Args:
        work_dir: the demo's.
    """
    found = []
    for config, (folder, *_) in _STAGES.items():
        found.append(work_dir / folder / f'iter_{_iterations(config)}.pth')
    return tuple(map(str, found)) if all(path.is_file() for path in found) else None


def costs(cfg_options: dict[str, Any] | None = None) -> dict[str, float]:
    """What each stage of :func:`train_both` costs, for a :class:`Meter`.

    Args:
        cfg_options: overrides of both configs, keys with dots.
    """
    return {
        stage: weight * _iterations(config, cfg_options)
        for config, (_, stage, weight) in _STAGES.items()
    }


def train_both(
    work_dir: Path, *, seed: int, meter: Meter, cfg_options: dict[str, Any] | None = None
) -> tuple[str, str]:
    """Train the dense model and, from its weights, the sparse one; what is done is not repeated.

    Args:
        work_dir: for logs and checkpoints.
        seed: of both trainings.
        meter: made with the stages of :func:`costs`.
        cfg_options: overrides of both configs, keys with dots.

    Returns:
        The checkpoints of the dense and of the sparse model.
    """
    checkpoints: list[str] = []
    for config, (folder, stage, _) in _STAGES.items():
        with meter.stage(stage, _iterations(config, cfg_options)) as advance:
            checkpoints.append(
                comparison.train(
                    config,
                    work_dir / folder,
                    seed=seed,
                    load_from=checkpoints[0] if checkpoints else None,
                    advance=advance,
                    cfg_options=cfg_options,
                )
            )
    return checkpoints[0], checkpoints[1]


def _iterations(config: str, cfg_options: dict[str, Any] | None = None) -> int:
    return load_config(config, cfg_options).train_cfg.max_iters
