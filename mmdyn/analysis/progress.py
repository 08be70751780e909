"""One progress display over stages of different length."""

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
"""Seconds between lines where there is no terminal to redraw."""

_STATUS = (
    TaskProgressColumn(),
    TimeElapsedColumn(),
    TextColumn('so far,'),
    TimeRemainingColumn(),
    TextColumn('left'),
)


def quietly() -> contextlib.redirect_stdout:
    """Keep what mmengine prints off the screen, for a readable progress display.

    Its console handler keeps the stdout it was made with, so a Runner built so
    stays quiet; its log files hold everything.
    """
    return contextlib.redirect_stdout(io.StringIO())


class Meter(Progress):
    """Shows the current stage, the share done and an estimate of the time left.

    A bar on a terminal, a line now and then elsewhere.

    Args:
        costs: expected cost of each stage by name, in any unit.
        out: where it is shown; None = standard output.
    """

    def __init__(self, costs: Mapping[str, float], out: TextIO | None = None) -> None:
        # Kept, so that a stage may redirect stdout to silence what runs in it.
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
        """Run a stage; yields what is to be called after each of its steps.

        Args:
            name: one of the stages the meter was made for.
            steps: how many steps it has, about.
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
