"""Processes forked from one that has imported everything, so that each starts quickly."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

# Not forked from the test process: torch's threads don't survive a fork, and its memory holds
# remains of other tests.
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
    """Call a function of a module in a separate process; returns its result."""
    with ProcessPoolExecutor(1, mp_context=FORKS) as pool:
        return pool.submit(function, *args).result()
