"""CheckpointHook: whatever ends a training, no checkpoint is left half-written."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as HostHook
from mmengine.runner import save_checkpoint

from mmdyn.converters.reading import read_checkpoint
from mmdyn.registry import HOOKS
from mmdyn.whole_files import remove_parts, whole_file, write_text


@HOOKS.register_module()
class CheckpointHook(HostHook):
    """mmengine's, with its arguments, for trainings that may be killed at any moment.

    mmengine writes checkpoints, and the file ``last_checkpoint`` that names the latest one, in
    their place, and removes an outdated checkpoint before it writes the next. Here

    - every file is written beside its place, then renamed: it is whole or it isn't there;
    - ``last_checkpoint`` is written once the checkpoint that it names is there;
    - what ``max_keep_ckpts`` and ``save_best`` replace is removed once the replacement is there;
    - parts of configs, as datasets' ``metainfo`` may hold them, are saved as plain dictionaries:
      a checkpoint that holds data only can be read safely.

    What a killed training left of a file is removed when the next one starts. Only local folders
    are treated so: a remote storage has its own ways.
    """

    _is_local = False  # until a training begins

    def before_train(self, runner) -> None:
        """Finds out where checkpoints go, and tidies up there.

        Args:
            runner: The runner.
        """
        super().before_train(runner)
        self._is_local = self.file_client_args is None and isinstance(
            self.file_backend, LocalBackend
        )
        if self._is_local and is_main_process():
            for folder in {str(self.out_dir), runner.work_dir}:
                remove_parts(folder)

    def before_save_checkpoint(self, runner, checkpoint: dict[str, Any]) -> None:
        """Makes plain what a checkpoint says beside the weights.

        Args:
            runner: The runner.
            checkpoint: What is about to be saved.
        """
        for key in ('meta', 'message_hub'):
            if key in checkpoint:
                checkpoint[key] = _plain(checkpoint[key])

    def after_val_epoch(self, runner, metrics: dict[str, float]) -> None:
        """Saves the best checkpoint, if this is it.

        Args:
            runner: The runner.
            metrics: The validation's.
        """
        if not self._is_local:
            super().after_val_epoch(runner, metrics)
            return
        backend = self.file_backend
        self.file_backend = removals = _NotedRemovals(backend)
        try:
            super().after_val_epoch(_WholeCheckpoints(runner), metrics)
        finally:
            self.file_backend = backend
        for path in removals.paths:
            # Of a training that was resumed from another folder, the best one stays there.
            ours = os.path.dirname(os.path.abspath(path)) == os.path.abspath(self.out_dir)
            if ours and path not in self._best_checkpoints():
                backend.remove(path)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict[str, Any]) -> None:
        if not self._is_local:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        outdated = self._rotate(runner, step)
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = os.path.join(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        saving = runner if isinstance(runner, _WholeCheckpoints) else _WholeCheckpoints(runner)
        saving.save_checkpoint(
            self.out_dir,
            filename,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_text(os.path.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
            for old in outdated:
                Path(self.out_dir, self.filename_tmpl.format(old)).unlink(missing_ok=True)

    @master_only
    def _publish_model(self, runner, ckpt_path: str) -> None:
        if not self._is_local:
            super()._publish_model(runner, ckpt_path)
            return
        checkpoint = read_checkpoint(ckpt_path, trust=True)  # written just now
        published = {key: checkpoint[key] for key in self.published_keys if key in checkpoint}
        digest = hashlib.sha256(pickle.dumps(published)).hexdigest()
        path = f'{os.path.splitext(ckpt_path)[0]}-{digest[:8]}.pth'
        with whole_file(path) as beside:
            save_checkpoint(published, str(beside))
        runner.logger.info(f'{", ".join(published)} of {ckpt_path} published as {path}.')

    def _rotate(self, runner, step: int) -> Sequence[int]:
        """Enters a step among those to keep; returns the outdated ones."""
        if self.max_keep_ckpts <= 0:
            return ()
        kept = [*(old for old in self.keep_ckpt_ids if old != step), step]
        # The outdated ones too, as they are still there: a training that is killed before they
        # are removed leaves that to the one that resumes.
        runner.message_hub.update_info('keep_ckpt_ids', kept)
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(kept)  # drops the outdated
        return kept[: -self.max_keep_ckpts]

    def _best_checkpoints(self) -> list[str | None]:
        best = getattr(self, 'best_ckpt_path_dict', {})
        return [getattr(self, 'best_ckpt_path', None), *best.values()]


def _plain(value: Any) -> Any:
    """The same without mmengine's ``ConfigDict``."""
    if type(value) in (dict, ConfigDict):
        return {key: _plain(part) for key, part in value.items()}
    if type(value) in (list, tuple, OrderedDict):
        parts = value.items() if isinstance(value, OrderedDict) else value
        return type(value)(map(_plain, parts))
    return value


class _WholeCheckpoints:
    """Stands in for a runner where checkpoints are saved: they appear whole or not at all.

    Args:
        runner: all other attributes are taken from it.
    """

    def __init__(self, runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """The runner's, on all processes: it may have to gather what the first one writes."""
        if not is_main_process():
            self._runner.save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        os.makedirs(out_dir, exist_ok=True)
        with whole_file(os.path.join(out_dir, filename)) as beside:
            self._runner.save_checkpoint(str(beside.parent), beside.name, *args, **kwargs)


class _NotedRemovals:
    """Stands in for a file backend and only notes what is to be removed.

    Args:
        backend: all other attributes are taken from it.
    """

    def __init__(self, backend: LocalBackend) -> None:
        self.paths: list[str] = []
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, filepath: str) -> None:
        """Notes a file."""
        self.paths.append(filepath)
