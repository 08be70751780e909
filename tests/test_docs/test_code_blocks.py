"""Every block of code in README, documentation and results does what a reader expects of it."""

import shutil
import sys

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmdyn.registry import MODELS
from tests.test_docs.fences import PAGES, Fence, commands_of, fences_of, inline_commands
from tests.test_docs.running import check, furnish, run_command, run_python
from tests.torch_line import needs_export

# More than ten seconds: models are traced.
SLOW = ('results_export',)


@pytest.fixture(scope='module')
def furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('furnished')
    furnish(folder)
    return folder


@pytest.fixture
def folder(tmp_path, furnished, monkeypatch):
    """A furnished working folder; modules imported from there are unloaded afterwards."""
    shutil.copytree(furnished, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], '__file__', None)).startswith(str(tmp_path)):
            del sys.modules[name]
            for key in [key for key, cls in MODELS.module_dict.items() if cls.__module__ == name]:
                del MODELS.module_dict[key]


def pages_with(*kinds):
    pages = [page for page in PAGES if any(fence.kind in kinds for fence in fences_of(page))]
    slow = {name: [pytest.mark.slow] for name in SLOW}
    slow['results_export'].append(needs_export)
    return [pytest.param(page, marks=slow.get(page.stem, []), id=page.stem) for page in pages]


def write_files(page, folder):
    for fence in fences_of(page):
        if fence.kind in ('config', 'module') and fence.file_name:
            fence.write(folder)


@pytest.mark.parametrize('page', pages_with('python', 'config', 'module'))
def test_python_runs(page, folder):
    run_python(page, folder)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_are_those_of_our_tools(page, tmp_path):
    write_files(page, tmp_path)
    scripts = [fence.text for fence in fences_of(page) if fence.kind in ('bash', 'run')]
    for command in [*commands_of('\n'.join(scripts)), *inline_commands(page)]:
        check(command, tmp_path)


@pytest.mark.parametrize('page', pages_with('run'))
def test_commands_run(page, folder):
    write_files(page, folder)
    for fence in fences_of(page):
        if fence.kind == 'run':
            for command in commands_of(fence.text):
                run_command(command)


@pytest.mark.parametrize(
    ('language', 'text', 'note'),
    [
        ('console', '$ ls', ''),
        ('python', 'size = 256', 'run with 512 => 64'),
        ('python', 'import math\nmath.no_such_thing', ''),
        ('python', "_base_ = 'mmdyn::upernet_dynswin_mini.py'\nmodel = dict(type='None')", ''),
        ('bash', 'python tools/test.py CONFIG CHECKPOINT --keep-ration 0.7', ''),
        ('bash', 'python tools/train.py configs/no_such.py', ''),
        ('bash', 'make tset', ''),
        ('bash', 'pip install -r requirements/none.txt', ''),
        ('bash', 'mmdyn test no.py no.pth', 'run'),
    ],
)
def test_a_wrong_block_does_not_pass(language, text, note, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / 'page.md'
    page.write_text(f'{f"<!-- {note} -->" if note else ""}\n```{language}\n{text}\n```\n')
    with pytest.raises((ValueError, AssertionError, AttributeError, KeyError, FileNotFoundError)):
        assert fences_of(page) == [Fence(page, 2, language, f'{text}\n', note)]
        run_python(page, tmp_path)
        test_commands_are_those_of_our_tools(page, tmp_path)
        test_commands_run(page, tmp_path)
