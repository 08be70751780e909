"""What the set-up script refuses, and that the versions stated in several files agree."""

import os
import re
import subprocess
import sys
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
        ('3.9', 'maintained', 'maintained OpenMMLab line needs Python 3.11, 3.12, 3.10'),
        ('3.13', 'maintained', 'maintained OpenMMLab line needs Python 3.11, 3.12, 3.10'),
        ('3.12', 'original', 'original OpenMMLab line needs Python 3.11, 3.10'),
        ('3.11', 'newest', 'LINE=newest'),
        (None, 'maintained', 'PYTHON=no-such-python'),
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
    assert 'needs Python 3.11, 3.12, 3.10' in done.stderr
    assert 'apt-get install python3.11-venv' in done.stderr


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    done = set_up(tmp_path, VENV=str(tmp_path / 'mine'))
    assert done.returncode == 2
    assert 'is not a virtual environment' in done.stderr
    assert os.listdir(tmp_path / 'mine') == ['thesis.txt']


STUB = """#!/bin/sh
# A Python 3.11 that installs nothing and logs what it is asked to run.
echo "$*" >>"$LOG"
case "$*" in
    '-m venv'*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    *sys.version_info*) echo 3.11 ;;
    '-W ignore -') cat >/dev/null && echo 'cpu cp311-torch2-x86_64-cpu' ;;
    *--dry-run*) exit "$NO_CPU_INDEX" ;;
    *--only-binary* | *mmcv.ops*) exit "$NO_WHEEL" ;;
esac
"""
PURE = '--no-binary onedl-mmcv'


@pytest.mark.skipif(
    not sys.platform.startswith('linux') or Path('/proc/driver/nvidia/version').exists(),
    reason='the CPU build is chosen on Linux without an NVIDIA GPU',
)
@pytest.mark.parametrize(
    ('no_cpu_index', 'no_wheel', 'index'),
    [(0, 1, None), (1, 1, None), (1, 0, None), (0, 1, 'default'), (0, 1, 'https://mine')],
)
def test_steps_run_once_and_take_the_torch_and_the_mmcv_that_are_to_be_had(
    tmp_path, no_cpu_index, no_wheel, index
):
    python = tmp_path / 'python3.11'
    python.write_text(STUB)
    python.chmod(0o755)
    log = tmp_path / 'log'
    variables = dict(
        PYTHON=str(python),
        VENV=str(tmp_path / 'venv'),
        LOG=str(log),
        NO_CPU_INDEX=str(no_cpu_index),
        NO_WHEEL=str(no_wheel),
    )
    done = set_up(tmp_path, **variables, **({'TORCH_INDEX': index} if index else {}))
    assert done.returncode == 0, done.stderr
    ran = log.read_text()
    installs = [line for line in ran.splitlines() if 'torch.txt' in line and '--no-deps' in line]
    wanted = index or ('https://download.pytorch.org/whl/cpu' if not no_cpu_index else 'default')
    assert [f'--index-url {wanted}' in line for line in installs] == [True] * (wanted != 'default')
    assert ('CPU build' in done.stdout) == (index is None and not no_cpu_index)
    assert (PURE in ran) == bool(no_wheel)

    log.write_text('')
    again = set_up(tmp_path, **variables)
    assert again.returncode == 0 and again.stdout == ''
    assert ' install ' not in log.read_text()


@pytest.mark.parametrize('step', ['torch.txt', 'runtime.txt', '--no-build-isolation'])
def test_a_step_that_fails_runs_again(tmp_path, step):
    python = tmp_path / 'python3.11'
    variables = dict(
        PYTHON=str(python), VENV=str(tmp_path / 'venv'), LOG=str(tmp_path / 'log'), NO_WHEEL='0'
    )
    variables |= dict(NO_CPU_INDEX='1', TORCH_INDEX='https://mine')

    def run(stub):
        for path in (python, tmp_path / 'venv' / 'bin' / 'python'):
            if path.parent.exists():
                path.write_text(stub)
                path.chmod(0o755)
        (tmp_path / 'log').write_text('')
        return set_up(tmp_path, **variables), (tmp_path / 'log').read_text()

    assert run(STUB)[0].returncode == 0
    # Another index repeats torch, and what depends on it.
    variables['TORCH_INDEX'] = 'https://other'
    done, _ = run(STUB.replace('case "$*" in', f'case "$*" in\n    *{step}*) exit 1 ;;'))
    assert done.returncode != 0 and 'continues from here' in done.stdout
    variables.pop('TORCH_INDEX')
    done, ran = run(STUB)
    assert done.returncode == 0 and step in ran
    if step == 'torch.txt':
        assert '--index-url https://other' in ran


def test_another_python_than_the_environments_is_refused(tmp_path):
    log, python = tmp_path / 'log', tmp_path / 'python3.11'
    python.write_text(STUB)
    python.chmod(0o755)
    variables = dict(VENV=str(tmp_path / 'venv'), LOG=str(log), NO_CPU_INDEX='1', NO_WHEEL='0')
    assert set_up(tmp_path, PYTHON=str(python), **variables).returncode == 0
    other = fake_python(tmp_path / 'python3.12', '3.12')
    done = set_up(tmp_path, PYTHON=other, **variables)
    assert done.returncode == 2 and 'made with Python 3.11' in done.stderr


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
