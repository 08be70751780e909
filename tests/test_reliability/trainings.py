"""Tools in separate processes, for interrupting and killing."""

import contextlib
import functools
import os
import pkgutil
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmdyn import cli
from mmdyn.whole_files import PART
from tests.test_reliability.forks import FORKS
from tests.test_tools.segmentation import load_tool, write_config, write_data

CONFIG = """
_base_ = 'tiny.py'
custom_imports = dict(
    imports=['mmdyn', 'tests.test_reliability.trainings'], allow_failed_imports=False)
custom_hooks = [dict(type='LossFile', path='LOSSES')]
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=2, save_best='mIoU', rule='greater'))
train_cfg = dict(max_iters=MAX_ITERS, val_interval=4)
"""

LONG = 30
"""Length of an artificially prolonged moment, in seconds."""


@HOOKS.register_module()
class LossFile(Hook):
    """Appends every iteration's exact loss and process id to a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        with open(self.path, 'a') as file:
            file.write(f'{runner.iter} {outputs["loss"].item().hex()} {os.getpid()}\n')


def read_losses(path: Path) -> list[tuple[int, str]]:
    """(iteration, loss) of every trained iteration, in order."""
    return [(int(iteration), loss) for iteration, loss, _ in read_lines(path)]


def read_processes(path: Path) -> set[int]:
    """Processes that trained at least one iteration."""
    return {int(process) for _, _, process in read_lines(path)}


def read_lines(path: Path) -> list[list[str]]:
    # The last line of a killed process may be cut, and the file may not exist yet.
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line.split() for line in lines if line.endswith('\n')]


class Training:
    """A process that runs a tool, by default tools/train.py; see :func:`run_tool`."""

    def __init__(self, *arguments: Any, log: Path, **settings: Any) -> None:
        self.log = log
        self._process = FORKS.Process(
            target=run_tool, args=([str(one) for one in arguments], str(log)), kwargs=settings
        )
        self._process.start()
        self.pid = self._process.pid

    def wait(self, seconds: float = 120) -> int:
        """Wait for the end; returns the exit code, negative for a signal."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f'still running after {seconds} s: {self.log.read_text()[-3000:]}')
        return self._process.exitcode

    def interrupt(self) -> bool:
        """Send Ctrl-C, like a terminal, to the process and its workers; False if all ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)
            return True
        return False

    def is_gone(self, seconds: float = 10) -> bool:
        """Wait until the process and its workers are gone."""
        end = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.killpg(self.pid, 0)
                time.sleep(0.01)
            return False
        return True

    def kill(self) -> None:
        """Send kill -9 and wait for the end."""
        self._process.kill()
        self._process.join()

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> bool:
        """Wait for a condition; False if the training or the time ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if self._process.exitcode is not None or time.monotonic() > end:
                return condition()
            time.sleep(0.002)
        return True


class Place:
    """A training's folder: data, config, losses and work directory."""

    def __init__(self, folder: Path, iterations: int) -> None:
        folder.mkdir(parents=True)
        base = write_config(folder, write_data(folder / 'data'))
        self.folder, self.work_dir = folder, folder / 'work'
        self.losses, self.log = folder / 'losses.txt', folder / 'log.txt'
        self.config = folder / 'config.py'
        text = CONFIG.replace('tiny.py', str(base)).replace('LOSSES', str(self.losses))
        self.config.write_text(text.replace('MAX_ITERS', str(iterations)))

    def train(self, *arguments: str, **settings) -> Training:
        """Start or resume the training."""
        options = ('--work-dir', self.work_dir, '--resume', *arguments)
        return Training(self.config, *options, log=self.log, **settings)

    def checkpoints(self) -> dict[str, dict]:
        """Contents of all files with names of checkpoints."""
        paths = self.work_dir.rglob('*.pth') if self.work_dir.is_dir() else ()
        return {
            p.name: torch.load(p, weights_only=False) for p in paths if not p.name.startswith(PART)
        }


def run_tool(
    arguments: list[str],
    log: str,
    *,
    tool: str = 'train',
    environment: dict[str, str] | None = None,
    file_limit: int | None = None,
    limit_at: str | None = None,
    long_moment: tuple[str, int, str] | None = None,
    at_work: tuple[str, str] | None = None,
) -> None:
    """Main function of a tool's process.

    Args:
        arguments: of the tool.
        log: file for output and errors.
        tool: its name.
        environment: variables to set.
        file_limit: maximum file size in bytes, to simulate a full disk.
        limit_at: function, as ``module:name``, from whose call on the limit applies; None = from
            the start.
        long_moment: (which, of which checkpoint, marker): prolongs a moment in writing the n-th
            checkpoint to :data:`LONG`, and creates the empty file ``marker`` when it begins.
        at_work: (function, marker): creates the empty file ``marker`` when a function, given as
            ``module:name``, is called.
    """
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.seed):
        seed()  # forks start with the same state
    Config.pretty_text = property(lambda _: '')  # slow formatting
    if file_limit is not None:
        limits = (file_limit, resource.RLIM_INFINITY)
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        limit() if limit_at is None else _call_first(limit_at, limit)
    if long_moment is not None:
        _lengthen(*long_moment)
    if at_work is not None:
        _call_first(at_work[0], Path(at_work[1]).touch)
    code = 1
    try:
        code = cli.run(lambda: load_tool(tool).main(arguments))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from now on ignored
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _call_first(function: str, act: Callable[[], Any]) -> None:
    """Make a function, given as ``module:name``, call another one first."""
    called = pkgutil.resolve_name(function)
    owner, _, name = function.replace(':', '.').rpartition('.')

    def telling(*args: Any, **kwargs: Any) -> Any:
        act()
        return called(*args, **kwargs)

    setattr(pkgutil.resolve_name(owner), name, telling)


def _lengthen(which: str, count: int, marker: str) -> None:
    left = [count]
    replace = os.replace

    def wait() -> None:
        Path(marker).touch()
        time.sleep(LONG)

    def slow_put(self, content: bytes, path: str) -> None:
        left[0] -= 1
        with open(path, 'wb') as file:
            file.write(content[: len(content) // 2])
            file.flush()
            if left[0] == 0 and which == 'inside':
                wait()
            file.write(content[len(content) // 2 :])

    def slow_replace(source: str, target: str) -> None:
        due = left[0] == 0 and str(target).endswith('.pth')
        if due and which == 'before renaming':
            wait()
        replace(source, target)
        if due and which == 'after renaming':
            wait()

    LocalBackend.put = slow_put
    os.replace = slow_replace
