"""Finds the checkpoint to resume from: the latest whole one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmengine.config import Config

from mmdyn.checks import is_address
from mmdyn.converters.checkpoint_files import check_checkpoint
from mmdyn.errors import DamagedCheckpointError


def latest_checkpoint(cfg: Config, trust: bool = False) -> tuple[str | None, list[str]]:
    """Find the latest whole checkpoint of a training.

    That is the one named in the file ``last_checkpoint``, or, if either is missing or damaged, the
    newest of the others.

    Args:
        cfg: the training's config; ``work_dir`` must be set.
        trust: read checkpoints without restrictions.

    Returns:
        The checkpoint, None if there is none, and the reasons why others were skipped.

    Raises:
        ValueError: if the latest one contains arbitrary objects and ``trust`` is False.
    """
    named = named_checkpoint(Path(cfg.work_dir))
    candidates = _newest_first(checkpoint_folder(cfg), _pattern(_hook(cfg)))
    if named is not None:
        others = (path for path in candidates if os.path.abspath(path) != os.path.abspath(named))
        candidates = [named, *others]
    passed_over = []
    for path in candidates:
        if os.path.isdir(path):  # not checked: some strategies write folders
            return path, passed_over
        try:
            check_checkpoint(path, trust)
        except (FileNotFoundError, DamagedCheckpointError) as error:
            passed_over.append(str(error))
        else:
            return path, passed_over
    return None, passed_over


def checkpoint_folder(cfg: Config) -> Path | None:
    """Folder of checkpoints: the work directory, or one of its name in the hook's ``out_dir``.

    None if that is an address.
    """
    out_dir = _hook(cfg).get('out_dir')
    if out_dir is None:
        return Path(cfg.work_dir)
    if is_address(str(out_dir)):
        return None
    return Path(out_dir, Path(os.path.normpath(cfg.work_dir)).name)


def named_checkpoint(work_dir: Path) -> str | None:
    """Checkpoint named in ``last_checkpoint``; None if the file is missing or damaged."""
    try:
        named = (work_dir / 'last_checkpoint').read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not named or is_address(named):
        return named or None
    # The stored path may be relative to where training was started.
    here = work_dir / Path(named).name
    return str(here) if here.is_file() and not os.path.isfile(named) else named


def _hook(cfg: Config) -> dict:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}


def _newest_first(folder: Path | None, pattern: re.Pattern) -> list[str]:
    found = []
    for path in folder.glob('*') if folder is not None else ():
        if match := pattern.fullmatch(path.name):
            found.append((path.stat().st_mtime_ns, int(match[1] or 0), str(path)))
    return [path for _, _, path in sorted(found, reverse=True)]


def _pattern(hook: dict) -> re.Pattern:
    template = hook.get('filename_tmpl')
    if template is None:
        template = 'epoch_{}.pth' if hook.get('by_epoch', True) else 'iter_{}.pth'
    before, *after = re.split(r'\{[^}]*\}', template, maxsplit=1)
    if not after:  # a single file that is overwritten
        return re.compile(f'{re.escape(template)}()')
    return re.compile(f'{re.escape(before)}(\\d+){re.escape(after[0])}')
