"""What the set-up script refuses, and that the versions stated in several files agree."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from mmdyn import compat
from mmdyn.version import __version__

ROOT = Path(__file__).parents[2]


def set_up(tmp_path, **variables):
    return subprocess.run(
        ['bash', str(ROOT / 'tools' / 'setup_env.sh')],
        env={'PATH': os.environ['PATH'], 'HOME': str(tmp_path), **variables},
        capture_output=True,
        text=True,
    )


def fake_python(path, version):
    """A command that reports that version of Python."""
    path.write_text(f'#!/bin/sh\necho {version}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ('version', 'line', 'said'),
    [
        ('3.9', 'maintained', 'is Python 3.9; mmdyn with the maintained'),
        ('3.13', 'maintained', 'needs 3.10, 3.11 or 3.12'),
        ('3.12', 'original', 'mmdyn with the original OpenMMLab line needs 3.10 or 3.11'),
        ('3.11', 'newest', 'LINE=newest is none of maintained, original'),
        (None, 'maintained', 'PYTHON=no-such-python is not a Python that runs here'),
    ],
)
def test_other_pythons_and_lines_are_refused(tmp_path, version, line, said):
    python = fake_python(tmp_path / 'python', version) if version else 'no-such-python'
    done = set_up(tmp_path, PYTHON=python, LINE=line, VENV=str(tmp_path / 'venv'))
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / 'venv').exists()


def test_no_python_at_all_says_what_to_install(tmp_path):
    tools = tmp_path / 'bin'
    tools.mkdir()
    for tool in ('bash', 'cat', 'cksum', 'dirname', 'ls', 'sed', 'tr'):
        found = subprocess.run(['sh', '-c', f'command -v {tool}'], capture_output=True, text=True)
        (tools / tool).symlink_to(found.stdout.strip())
    done = set_up(tmp_path, PATH=str(tools), VENV=str(tmp_path / 'venv'))
    assert done.returncode == 2
    assert 'no Python 3.10, 3.11 or 3.12 found' in done.stderr
    assert 'apt-get install python3.11' in done.stderr


def test_a_disk_without_room_is_noticed_before_anything_is_made(tmp_path):
    tools = tmp_path / 'bin'
    tools.mkdir()
    df = tools / 'df'
    df.write_text('#!/bin/sh\necho Filesystem 1M Used Available\necho disk 99999 90000 1234 9 /\n')
    df.chmod(0o755)
    venv = tmp_path / 'not' / 'there' / 'venv'
    done = set_up(tmp_path, PATH=f'{tools}:{os.environ["PATH"]}', VENV=str(venv))
    assert done.returncode == 2
    assert '9500 MB' in done.stderr and '1234 MB free' in done.stderr
    assert 'TORCH_INDEX' in done.stderr and not venv.exists()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    done = set_up(tmp_path, VENV=str(tmp_path / 'mine'))
    assert done.returncode == 2
    assert 'is not a virtual environment' in done.stderr
    assert os.listdir(tmp_path / 'mine') == ['thesis.txt']


def pins(name):
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    return dict(re.findall(r'^([\w.-]+)==([^\s;]+)', text, re.MULTILINE))


def test_messages_name_the_versions_that_are_tested():
    maintained = {**pins('runtime'), **pins('mmcv')}
    original = {**pins('original'), **pins('original/mmcv')}
    for supported in compat.SUPPORTED.values():
        package, version = supported.maintained.split('==')
        assert maintained[package] == version
        package, version = supported.original.split('==')
        assert original[package] == version
    # Packages needed for compiling mmcv are in a command in its comments.
    text = (ROOT / 'requirements' / 'original.txt').read_text()
    for name in ('original/torch', 'original/mmcv'):
        assert all(f' {package}=={version}' in text for package, version in pins(name).items())


def test_the_documentation_states_the_versions_that_are_tested():
    page = (ROOT / 'docs' / 'get_started.md').read_text()
    for name, supported in compat.SUPPORTED.items():
        versions = [
            package.split('==')[1] for package in (supported.original, supported.maintained)
        ]
        row = next(line for line in page.splitlines() if line.startswith(f'| `{name}`'))
        assert row.endswith(f'| {" | ".join(versions)} |')
        assert f'{supported.minimum} or later, below {supported.below}' in row
    old, new = (pins(f'{folder}torch')['torch'] for folder in ('original/', ''))
    assert f' | {old} | {new} |' in page


def test_pre_commit_runs_the_pinned_versions():
    config = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    revisions = {Path(repo['repo']).name: repo.get('rev', '') for repo in config['repos']}
    assert revisions['ruff-pre-commit'] == f'v{pins("dev")["ruff"]}'
    assert revisions['codespell'] == f'v{pins("dev")["codespell"]}'


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == __version__
    assert f'## [{__version__}]' in (ROOT / 'CHANGELOG.md').read_text()
