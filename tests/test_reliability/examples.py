"""Numbers of cases and examples in this folder."""

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

NIGHTLY = os.environ.get('MMDYN_NIGHTLY') == '1'
T = TypeVar('T')


def count(few: int, many: int) -> int:
    """``many`` if MMDYN_NIGHTLY=1, else ``few``."""
    return many if NIGHTLY else few


def some(cases: Iterable[T], every: int) -> list[T]:
    """All cases if MMDYN_NIGHTLY=1, else every ``every``-th."""
    return list(cases)[:: count(every, 1)]


def examples(few: int, many: int, **strategies: SearchStrategy) -> Callable:
    """Decorator: runs a test on a number of examples, the same every time, and counts them."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            examples.drawn += 1
            test(*args, **kwargs)

        return settings(
            max_examples=count(few, many),
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            deadline=None,
        )(given(**strategies)(counted))

    return decorate


examples.drawn = 0
