"""Figures of the tests in this folder, written to a page by ``make reliability``."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmdyn.analysis.machine import describe, describe_machine, versions

INTRO = """# Reliability

What was made to go wrong, how often, and what came of it. Written by the tests themselves:

```bash
make reliability
```

"""
_FIGURES: dict[str, dict[str, str]] = {}


@pytest.fixture
def figure() -> Callable[[str, str, object], None]:
    """``figure(section, what, value)`` puts a measured figure on the page."""

    def note(section: str, what: str, value: object) -> None:
        _FIGURES.setdefault(section, {})[what] = str(value)

    return note


def pytest_sessionfinish(exitstatus: int) -> None:
    path = os.environ.get('MMDYN_RELIABILITY')
    if not path or exitstatus != 0:
        return
    machine = describe_machine('cpu')
    lines = [INTRO]
    for section, figures in sorted(_FIGURES.items()):
        lines += [f'## {section}\n', '| what | figure |', '| --- | --- |']
        lines += [f'| {what} | {value} |' for what, value in figures.items()]
        lines.append('')
    lines.append(f'Measured on {describe(machine, versions())}.\n')
    Path(path).write_text('\n'.join(lines))
