"""Write licences.md, the licences of the packages that mmdyn runs on.

    python docs/list_licences.py

Read from what is installed, so run it in the environment that ``make setup`` makes with Python 3.11
on Linux, which is what the page says it lists.
"""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_name('licences.md')
RUNS_ON = ('torch', 'mmcv', 'runtime')
BESIDE = ('build', 'dev', 'export', 'app', 'docs')

# Packages whose metadata hold a whole licence text, none, or a name that SPDX does not know.
NAMES = {
    'matplotlib': 'Matplotlib (of the PSF kind)',
    'numba': 'BSD-2-Clause',
    'onedl-mmcv': 'Apache-2.0',
    'onedl-mmdetection': 'Apache-2.0',
    'onedl-mmengine': 'Apache-2.0',
    'onedl-mmsegmentation': 'Apache-2.0',
    'pycocotools': 'BSD-2-Clause',
}
SPDX = {
    'Apache 2.0': 'Apache-2.0',
    'Apache Software License': 'Apache-2.0',
    'BSD': 'BSD-3-Clause',
    'BSD License': 'BSD-3-Clause',
    'MIT License': 'MIT',
    'Python Software Foundation License': 'PSF-2.0',
    'NVIDIA Proprietary Software': 'NVIDIA, proprietary',
    'LicenseRef-NVIDIA-Proprietary': 'NVIDIA, proprietary',
    'LicenseRef-NVIDIA-SOFTWARE-LICENSE': 'NVIDIA, proprietary',
}
HEAD = """# Under which licences?

mmdyn itself is under the Apache License 2.0. Below are the licences of the packages that it runs
on, with their dependencies, as `python docs/list_licences.py` read them from what was installed on
Linux with Python 3.11. mmdyn contains no code of theirs.

Before you redistribute an environment:

- torch for NVIDIA's GPUs brings NVIDIA's libraries, which are not open source and have terms of
  their own. torch for CPUs (`make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu`) does
  not.
- The wheels of opencv contain FFmpeg (LGPL-2.1), and `opencv-python` also Qt 5 (LGPL-3.0);
  `opencv-python-headless`, which mmdyn uses, contains no Qt.
- Weights have licences too, of their publisher and of the data they were trained on.
"""


def name_of(package: str) -> str:
    """A package's name as indexes write it."""
    return re.sub(r'[-_.]+', '-', package).lower()


def direct(file: str) -> list[Requirement]:
    """What requirements/FILE.txt asks for."""
    lines = (ROOT / 'requirements' / f'{file}.txt').read_text(encoding='utf-8').splitlines()
    stripped = (line.partition('#')[0].strip() for line in lines)
    return [Requirement(line) for line in stripped if line]


def licence(package: str) -> str:
    """The name of an installed package's licence.

    Raises:
        ValueError: It names none; look it up and add it to ``NAMES``.
    """
    if package in NAMES:
        return NAMES[package]
    about = distribution(package).metadata
    words = (about.get('License') or '').strip()
    kinds = [kind for kind in about.get_all('Classifier') or [] if 'License' in kind]
    name = about.get('License-Expression')
    if not name and words != 'UNKNOWN' and len(words) < 40:
        name = words
    if not name and kinds:
        name = kinds[0].split(' :: ')[-1]
    if not name:
        raise ValueError(f'{package} names no licence: look it up and add it to {__file__}')
    return SPDX.get(name, name)


def brought(package: str, seen: set[str]) -> Iterator[str]:
    """An installed package and everything it needs, except what ``seen`` has."""
    package = name_of(package)
    if package in seen:
        return
    seen.add(package)
    try:
        needs = distribution(package).requires or ()
    except PackageNotFoundError:  # of another platform
        return
    yield package
    for need in map(Requirement, needs):
        if need.marker is None or need.marker.evaluate({'extra': ''}):
            yield from brought(need.name, seen)


def installed() -> tuple[dict[str, str], dict[str, str]]:
    """Licences by package: what mmdyn runs on, and what its tools, tests and docs need."""
    seen: set[str] = set()
    runs_on = [p for file in RUNS_ON for need in direct(file) for p in brought(need.name, seen)]
    beside = {name_of(need.name) for file in BESIDE for need in direct(file)} - seen
    present = [p for p in beside if next(brought(p, set()), None)]
    return {p: licence(p) for p in runs_on}, {p: licence(p) for p in present}


def make_page() -> str:
    """The whole page."""
    lines = [HEAD]
    titles = ('What mmdyn runs on', 'What `make setup` installs beside it')
    for title, rows in zip(titles, installed(), strict=True):
        lines += [f'## {title}\n', '| package | licence |', '| --- | --- |']
        lines += [f'| {package} | {name} |' for package, name in sorted(rows.items())]
        lines.append('')
    return '\n'.join(lines)


if __name__ == '__main__':
    PAGE.write_text(make_page(), encoding='utf-8')
