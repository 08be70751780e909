"""CheckpointHook: whatever ends a training, no checkpoint is left half-written."""

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
    """mmengine's, with its arguments, for trainings that may be killed at any moment.

    - Files are written beside their place, then renamed, as is all that the hosts write in this
      process from then on; what a killed training left of one is removed when the next starts.
    - What ``max_keep_ckpts`` and ``save_best`` replace is removed once the replacement is there,
      where mmengine removes it first, and only in this training's own folder: the best checkpoint
      of a training that was resumed from another folder stays.
    - Parts of configs, such as datasets' ``metainfo``, are saved as plain dictionaries, so that
      checkpoints hold data only and a safe load reads them.
    """

    file_backend: Any = None  # until a training begins
    _kept: Sequence[int] = ()

    def before_train(self, runner) -> None:
        """Find out where checkpoints go, and tidy up there."""
        super().before_train(runner)
        write_whole()
        if is_main_process():
            for folder in {str(self.out_dir), runner.work_dir}:
                remove_parts(folder)

    def before_save_checkpoint(self, runner, checkpoint: dict[str, Any]) -> None:
        """Make plain what a checkpoint says beside the weights."""
        for key in ('meta', 'message_hub'):
            if key in checkpoint:
                checkpoint[key] = _plain(checkpoint[key])
        state = checkpoint.get('message_hub', {}).get('runtime_info', {})
        if ids := state.get('keep_ckpt_ids'):
            # A training that is killed before outdated ones are removed leaves that to the next.
            state['keep_ckpt_ids'] = [*(old for old in self._kept if old not in ids), *ids]

    def after_val_epoch(self, runner, metrics: dict[str, float]) -> None:
        """Save the best checkpoint, if this is it."""
        with self._removing_afterwards():
            super().after_val_epoch(runner, metrics)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict[str, Any]) -> None:
        self._kept = tuple(getattr(self, 'keep_ckpt_ids', ()))
        with self._removing_afterwards():
            super()._save_checkpoint_with_step(runner, step, meta)

    @contextmanager
    def _removing_afterwards(self) -> Iterator[None]:
        """Put off the removal of files to the end of the block; an error leaves them there."""
        backend = self.file_backend
        self.file_backend = noted = _NotedRemovals(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        written = (getattr(self, 'best_ckpt_path', None), *best)  # maybe under the same name
        for path in noted.paths:
            ours = os.path.dirname(os.path.abspath(path)) == os.path.abspath(self.out_dir)
            if ours and path not in written:
                backend.remove(path)


def _plain(value: Any) -> Any:
    """The same without mmengine's ``ConfigDict``."""
    if type(value) in (dict, ConfigDict):
        return {key: _plain(part) for key, part in value.items()}
    if type(value) in (list, tuple, OrderedDict):
        parts = value.items() if isinstance(value, OrderedDict) else value
        return type(value)(map(_plain, parts))
    return value


class _NotedRemovals:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.paths: list[str] = []
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, filepath: str) -> None:
        self.paths.append(filepath)
