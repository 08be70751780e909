"""Figures of the tests in this folder, written to a page by ``make reliability``."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mmdyn.analysis.machine import describe, describe_machine, versions

INTRO = """# What happens when something fails?

Trainings that are killed, full disks, damaged files, wrong configs, untrusted checkpoints, dead
processes: the tests of `tests/test_reliability/` cause these faults on purpose and write this page.

```bash
make reliability
```

`make test` runs most of them, with smaller numbers.
"""


@pytest.fixture(scope='session')
def world(tmp_path_factory: pytest.TempPathFactory, segmentor: Any) -> dict[str, Path]:
    """Files by their placeholders in command lines; tests must not change them."""
    folder = tmp_path_factory.mktemp('world')
    clip, draw = folder / 'clip.mp4', np.random.default_rng(0)
    video = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*'mp4v'), 5, (160, 120))
    for _ in range(6):
        video.write(draw.integers(0, 256, (120, 160, 3), np.uint8))
    video.release()
    files = dict(pictures=segmentor.data / 'images', video=clip)
    return dict(config=segmentor.config, checkpoint=segmentor.checkpoint, **files)


START = time.monotonic()


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, str, object], None]:
    """``figure(section, what, value)`` adds a measured figure to the page."""

    def note(section: str, what: str, value: object) -> None:
        # Passed with the test's report, as any process may run the test.
        record_property('figure', (section, what, str(value)))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    path = os.environ.get('MMDYN_RELIABILITY')
    if not path:
        return
    passed, failed, errors, skipped = (
        terminalreporter.getreports(kind) for kind in ('passed', 'failed', 'error', 'skipped')
    )
    bad = len(failed) + len(errors)
    minutes = (time.monotonic() - START) / 60
    counts = f'{len(passed)} tests passed, {bad} failed, {len(skipped)} were skipped'
    lines = [INTRO, f'{counts}, in {minutes:.0f} minutes.\n']
    sections: dict[str, dict[str, str]] = {}
    # Figures noted by fixtures after a test come with a report of the kind ''.
    for report in [*passed, *terminalreporter.getreports('')]:
        for name, value in report.user_properties:
            if name == 'figure':
                section, what, found = value
                sections.setdefault(section, {})[what] = found
    lines += ['| test | what | figure |', '| --- | --- | --- |']
    for section, figures in sorted(sections.items()):
        lines += [f'| {section} | {what} | {found} |' for what, found in sorted(figures.items())]
    lines.append('')
    machine = describe_machine('cpu')
    lines.append(f'Measured on {describe(machine, versions())}.\n')
    Path(path).write_text('\n'.join(lines))
