"""Every block of code in the README and the documentation does what a reader expects of it."""

import sys

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmdyn.registry import MODELS
from tests.test_docs.commands import check, commands_of, inline_commands
from tests.test_docs.fences import PAGES, fences_of
from tests.test_docs.workplace import (
    furnish,
    run_command,
    run_python,
    write,
    write_checkpoints,
)
from tests.torch_line import needs_export

# More than ten seconds: models are traced.
SLOW = ('export',)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoints')
    write_checkpoints(folder)
    return folder


@pytest.fixture
def folder(tmp_path, checkpoints, monkeypatch):
    """A furnished folder to work in; what was imported from there is forgotten afterwards."""
    furnish(tmp_path, checkpoints)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], '__file__', None)).startswith(str(tmp_path)):
            del sys.modules[name]
            for key in [key for key, cls in MODELS.module_dict.items() if cls.__module__ == name]:
                del MODELS.module_dict[key]


def marks_of(name):
    return [
        *([pytest.mark.slow] if name in SLOW else []),
        *([needs_export] if name == 'export' else []),
    ]


def pages_with(*kinds):
    return [
        pytest.param(page, marks=marks_of(page.stem), id=page.stem)
        for page in PAGES
        if any(fence.kind() in kinds for fence in fences_of(page))
    ]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_it_is_known_what_to_do_with_each_block(page):
    for fence in fences_of(page):
        fence.kind()


@pytest.mark.parametrize('page', pages_with('python', 'config', 'module'))
def test_python_runs(page, folder):
    expected = sum(fence.kind() in ('python', 'config', 'module') for fence in fences_of(page))
    assert run_python(page, folder) == expected


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_are_those_of_our_tools(page, tmp_path):
    fences = fences_of(page)
    for fence in fences:
        if fence.kind() in ('config', 'module') and fence.file_name:
            write(fence, tmp_path)
    for fence in fences:
        if fence.kind() in ('bash', 'run'):
            for command in commands_of(fence.text):
                check(command, tmp_path)
    for command in inline_commands(page):
        check(command, tmp_path)


@pytest.mark.parametrize('page', pages_with('run'))
def test_commands_run(page, folder):
    for fence in fences_of(page):
        if fence.kind() in ('config', 'module') and fence.file_name:
            write(fence, folder)
        if fence.kind() == 'run':
            for command in commands_of(fence.text):
                run_command(command)


def test_hardly_anything_is_only_shown():
    skipped = [fence.where for page in PAGES for fence in fences_of(page) if fence.kind() == 'skip']
    assert len(skipped) == 0, skipped
