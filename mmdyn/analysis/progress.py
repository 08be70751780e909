"""A progress display for stages of different length."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_INTERVAL = 15.0
"""Seconds between lines without a terminal."""

_STATUS = (
    TaskProgressColumn(),
    TimeElapsedColumn(),
    TextColumn('so far,'),
    TimeRemainingColumn(),
    TextColumn('left'),
)


def quietly() -> contextlib.redirect_stdout:
    """Suppress stdout of mmengine, for a readable progress display.

    Its console handler keeps the stdout of its creation, so a Runner built inside stays quiet; log
    files are complete.
    """
    return contextlib.redirect_stdout(io.StringIO())


class Meter(Progress):
    """Shows the current stage, the fraction done and an estimate of the time left.

    A bar on a terminal, else occasional lines.

    Args:
        costs: expected cost of each stage by name, in any unit.
        out: output stream; None = standard output.
    """

    def __init__(self, costs: Mapping[str, float], out: TextIO | None = None) -> None:
        # Kept, so that a stage may redirect stdout.
        self._out = sys.stdout if out is None else out
        super().__init__(
            TextColumn('{task.description}'),
            BarColumn(),
            *_STATUS,
            console=Console(file=self._out),
            redirect_stdout=False,
            disable=not self._out.isatty(),
        )
        self._costs, self._last_line = dict(costs), 0.0
        self._stage = self.add_task('', total=sum(costs.values()))

    @contextlib.contextmanager
    def stage(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """Run a stage; yields a function to call after each of its steps.

        Args:
            name: of the stage, from ``costs``.
            steps: approximate number of steps.
        """
        begin, taken = self.tasks[0].completed, 0

        def advance() -> None:
            nonlocal taken
            taken += 1
            share = min(1.0, taken / steps)
            self._show(begin + self._costs[name] * share, f'{name} {taken}/{steps}')

        self._last_line = 0.0
        self._show(begin, name)
        yield advance
        self._show(begin + self._costs[name], f'{name} done')

    def _show(self, done: float, what: str) -> None:
        self.update(self._stage, completed=done, description=what)
        if self.disable and time.monotonic() - self._last_line > LINE_INTERVAL:
            self._last_line = time.monotonic()
            status = ' '.join(column.render(self.tasks[0]).plain for column in _STATUS)
            print(f'[{status}] {what}', file=self._out, flush=True)
