"""How many examples the tests of this folder draw."""

import os

from hypothesis import HealthCheck, settings

NIGHTLY = os.environ.get('MMDYN_NIGHTLY', '0') not in ('', '0')


def count(few: int, many: int) -> int:
    """``many`` where MMDYN_NIGHTLY=1, else ``few``."""
    return many if NIGHTLY else few


def examples(few: int, many: int, **kwargs: object) -> settings:
    """So many examples, the same every time; none is remembered from one run to the next."""
    return settings(
        max_examples=count(few, many),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        **{'deadline': None, **kwargs},
    )
