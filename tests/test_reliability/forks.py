"""Processes forked from one that imported everything, so that each starts within a moment."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

# Not from the tests' own process: torch's threads don't survive a fork, and its memory is full of
# what other tests left.
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(
    [
        'mmdyn.datasets',
        'mmdyn.models',
        'mmdyn.engine.prepare',
        'mmdyn.apis',
        'mmseg.apis',
        'tests.test_reliability.trainings',
    ]
)


def in_fork(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function of a module in a process of its own; returns what it returned."""
    with ProcessPoolExecutor(1, mp_context=FORKS) as pool:
        return pool.submit(function, *args).result()
