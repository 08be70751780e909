"""Content of a wheel of mmdyn, and that it works without the checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from mmdyn.version import __version__

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns('__pycache__', '.venv*', '.git', 'build', 'work_dirs', 'data')


def run(*command, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source, target):
    # Without isolation, as an isolated build would download build tools.
    options = ('-q', '--no-deps', '--no-build-isolation')
    run('-m', 'pip', 'wheel', '.', *options, '-w', target, cwd=source)
    (wheel,) = target.glob('*.whl')
    return wheel


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the checkout to build in, so that no build/ is left in this one."""
    copy = tmp_path_factory.mktemp('source') / 'mmdyn'
    copy.mkdir()
    for entry in ('mmdyn', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / entry, copy / entry, symlinks=True, ignore=NOT_COPIED)
    for entry in ROOT.iterdir():
        if entry.is_file():
            shutil.copy2(entry, copy)
    return copy


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp('wheel'))


def test_wheel_holds_the_package_configs_and_tools_only(wheel):
    held = names(wheel)
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'mmdyn').rglob('*.*')
        if path.suffix in ('.py', '.css') and '.mim' not in path.parts
    }
    for folder in ('configs', 'tools'):
        expected |= {
            f'mmdyn/.mim/{path.relative_to(ROOT).as_posix()}'
            for path in (ROOT / folder).rglob('*')
            if path.is_file() and path.suffix in ('.py', '.yml')
        }
    expected.add('mmdyn/.mim/model-index.yml')
    assert expected <= held
    ours = ('mmdyn/', f'mmdyn-{__version__}.dist-info/')
    assert [name for name in held if not name.startswith(ours)] == []
    assert [name for name in held if '__pycache__' in name or 'setup_env' in name] == []


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f'mmdyn-{__version__}.dist-info'
        metadata = Parser().parsestr(archive.read(f'{info}/METADATA').decode())
        assert b'mmdyn = mmdyn.__main__:main' in archive.read(f'{info}/entry_points.txt')
    assert (metadata['Name'], metadata['Version']) == ('mmdyn', __version__)
    assert set(metadata['Requires-Python'].split(',')) == {'>=3.10', '<3.13'}
    required = [line for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    # One OpenMMLab line must never replace the other, nor torch be changed.
    assert not [line for line in required if line.startswith(('mm', 'onedl', 'torch'))]
    assert {'dev', 'optional'} <= set(metadata.get_all('Provides-Extra'))


def test_wheel_works_elsewhere(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
    some = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))[0]
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path / "site")!r})\n'
        'import mmdyn\n'
        'from mmengine.config import Config\n'
        'from mmdyn.__main__ import main\n'
        f'print(mmdyn.__file__, Config._get_cfg_path("mmdyn::{some}", "")[0], sep="\\n")\n'
        'main(["train", "--help"])\n'
    )
    # -I: neither the working folder nor the environment may point to the checkout.
    module, config, usage, *_ = run('-I', '-c', code, cwd=tmp_path).splitlines()
    assert module == str(tmp_path / 'site' / 'mmdyn' / '__init__.py')
    assert config == str(tmp_path / 'site' / 'mmdyn' / '.mim' / 'configs' / some)
    assert usage.startswith('usage: mmdyn train')


def test_source_archive_gives_the_same_wheel(source, wheel, tmp_path):
    code = f'from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})'
    run('-c', code, cwd=source)
    (archive,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / 'unpacked')
    (unpacked,) = (tmp_path / 'unpacked').iterdir()
    (tmp_path / 'wheel').mkdir()
    assert names(build_wheel(unpacked, tmp_path / 'wheel')) == names(wheel)
