"""CheckpointHook: no partial checkpoints, whatever ends a training."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import ConfigDict
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as HostHook

from mmdyn.engine.host_files import write_whole
from mmdyn.registry import HOOKS
from mmdyn.whole_files import remove_parts


@HOOKS.register_module()
class CheckpointHook(HostHook):
    """mmengine's hook, with its arguments, for trainings that may be killed at any moment.

    - Files are written atomically, like all files of the hosts in this process from then on;
      temporary files of a killed training are removed when the next one starts.
    - Files replaced under ``max_keep_ckpts`` and ``save_best`` are removed after the replacement is
      written (mmengine removes them first), and only in this training's folder: the best checkpoint
      of a training resumed from another folder is kept.
    - Parts of configs, such as datasets' ``metainfo``, are saved as plain dicts, so that a safe
      load can read the checkpoints.
    """

    file_backend: Any = None  # until training starts
    _kept: Sequence[int] = ()

    def before_train(self, runner) -> None:
        """Determine the checkpoint folder and remove temporary files there."""
        super().before_train(runner)
        write_whole()
        if is_main_process():
            for folder in {str(self.out_dir), runner.work_dir}:
                remove_parts(folder)

    def before_save_checkpoint(self, runner, checkpoint: dict[str, Any]) -> None:
        """Convert a checkpoint's metadata to plain dicts."""
        for key in ('meta', 'message_hub'):
            if key in checkpoint:
                checkpoint[key] = _plain(checkpoint[key])
        state = checkpoint.get('message_hub', {}).get('runtime_info', {})
        if ids := state.get('keep_ckpt_ids'):
            # A training killed before removing outdated files leaves them to the next one.
            state['keep_ckpt_ids'] = [*(old for old in self._kept if old not in ids), *ids]

    def after_val_epoch(self, runner, metrics: dict[str, float]) -> None:
        """Save the checkpoint if it is the best."""
        with self._removing_afterwards():
            super().after_val_epoch(runner, metrics)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict[str, Any]) -> None:
        self._kept = tuple(getattr(self, 'keep_ckpt_ids', ()))
        with self._removing_afterwards():
            super()._save_checkpoint_with_step(runner, step, meta)

    @contextmanager
    def _removing_afterwards(self) -> Iterator[None]:
        """Defer the removal of files to the end of the block; on an error they are kept."""
        backend = self.file_backend
        self.file_backend = noted = _NotedRemovals(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        written = (getattr(self, 'best_ckpt_path', None), *best)  # may have the same name
        for path in noted.paths:
            ours = os.path.dirname(os.path.abspath(path)) == os.path.abspath(self.out_dir)
            if ours and path not in written:
                backend.remove(path)


def _plain(value: Any) -> Any:
    """Convert mmengine's ``ConfigDict`` to plain dicts, recursively."""
    if type(value) in (dict, ConfigDict):
        return {key: _plain(part) for key, part in value.items()}
    if type(value) in (list, tuple, OrderedDict):
        parts = value.items() if isinstance(value, OrderedDict) else value
        return type(value)(map(_plain, parts))
    return value


class _NotedRemovals:
    """A file backend that only records removals."""

    def __init__(self, backend: Any) -> None:
        self.paths: list[str] = []
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, filepath: str) -> None:
        self.paths.append(filepath)
