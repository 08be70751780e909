"""The locks have every package of `make setup`, with consistent versions and hashes."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

FOLDER = Path(__file__).parents[2] / 'requirements'
FILES = ('build', 'torch', 'runtime', 'dev', 'export', 'app', 'docs')
# By Python; others use the versions of constraints.txt without hashes.
LOCKS = {'3.11': 'lock.txt', '3.12': 'lock.txt'}
# Compiled on each machine against its torch, so there is no hash.
COMPILED = {'onedl-mmcv'}


def name_of(package):
    return re.sub(r'[-_.]+', '-', package).lower()


def requirements(name, python):
    """Requirements in a file for that Python on Linux."""
    lines = (FOLDER / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    asked = [Requirement(line) for line in (one.partition('#')[0].strip() for one in lines) if line]
    here = {'python_version': python, 'python_full_version': f'{python}.9'}
    return [need for need in asked if need.marker is None or need.marker.evaluate(here)]


def locked(python):
    """Versions and numbers of hashes by package."""
    text = (FOLDER / LOCKS[python]).read_text(encoding='utf-8')
    entries = re.split(
        r'^(?=[a-z])', re.sub(r'^#.*\n', '', text, flags=re.MULTILINE), flags=re.MULTILINE
    )
    found = {}
    for entry in filter(None, entries):
        match = re.match(r'([a-z0-9-]+)==([^\s;]+)', entry)
        # pip reads an entry to the first line that isn't continued.
        assert all(line.endswith(' \\') for line in entry.strip().splitlines()[:-1]), entry
        assert match, f'not pinned: {entry[:60]}'
        found[match[1]] = match[2], len(re.findall(r'--hash=sha256:[0-9a-f]{64}\b', entry))
    return found


@pytest.mark.parametrize('python', LOCKS)
def test_locks_have_hashes_and_agree_with_the_other_files(python):
    packages = locked(python)
    assert all(hashes for _, hashes in packages.values())
    for name in (*FILES, 'constraints'):
        for need in requirements(name, python):
            if name == 'constraints' and name_of(need.name) not in packages:
                continue  # for another platform
            version = packages.get(name_of(need.name), ('none', 0))[0]
            assert need.specifier.contains(version), f'{name}.txt: {need}, but locked: {version}'


@pytest.mark.parametrize('python', LOCKS)
def test_everything_but_torchs_own_is_in_the_constraints(python):
    """Without hashes too, two set-ups a month apart are identical."""
    pinned = {
        name_of(need.name)
        for name in (*FILES, 'constraints')
        for need in requirements(name, python)
        if any(part.operator == '==' for part in need.specifier)
    }
    torchs = {name for name in locked(python) if re.match('nvidia-|triton$|cuda-', name)}
    assert set(locked(python)) - torchs - pinned == set()


def test_all_that_is_installed_for_mmdyn_is_locked():
    """Including the dependencies of installed packages."""
    python = '.'.join(map(str, sys.version_info[:2]))
    python = python if python in LOCKS else '3.11'
    packages, seen, missing = locked(python), set(), set()
    waiting = [need.name for name in FILES for need in requirements(name, python)]
    while waiting:
        name = name_of(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        if name not in packages:
            missing.add(name)
        try:
            needs = distribution(name).requires or ()
        except PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({'extra': '', 'python_version': python}):
                waiting.append(need.name)
    assert missing <= COMPILED
