"""The page about licences names everything that is installed."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.torch_line import of_the_maintained_line

pytestmark = of_the_maintained_line

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'licences.md'


@pytest.fixture
def licences(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'docs'))
    yield importlib.import_module('list_licences')
    sys.modules.pop('list_licences', None)


def test_every_direct_dependency_is_on_the_page(licences):
    rows = licences.written(PAGE.read_text(encoding='utf-8'))
    asked = {
        licences.name_of(need.name)
        for file in (*licences.RUNS_ON, *licences.BESIDE)
        for need in licences.direct(file)
    }
    assert asked <= set(rows)
    files = {path.stem for path in (ROOT / 'requirements').glob('*.txt')}
    others = {'constraints', 'lock', 'optional', 'original'}
    assert files - others == {*licences.RUNS_ON, *licences.BESIDE}


def test_what_those_bring_is_on_the_page_too(licences):
    page = PAGE.read_text(encoding='utf-8')
    # Other Pythons and platforms bring a few packages more, and torch's own licences differ.
    if sys.version_info[:2] == (3, 11) and sys.platform == 'linux':
        assert licences.lacking(page) == []
    assert all(name.strip() not in ('', 'UNKNOWN') for name in licences.written(page).values())


def test_a_new_dependency_is_noticed(licences, monkeypatch):
    page = PAGE.read_text(encoding='utf-8').replace('| timm | Apache-2.0 |\n', '')
    assert licences.lacking(page) == ['timm: Apache-2.0']


def test_a_package_that_names_no_licence_is_refused(licences, monkeypatch):
    monkeypatch.setattr(licences, 'distribution', lambda name: type('', (), {'metadata': Silent()}))
    with pytest.raises(ValueError, match='some-package names no licence: look it up'):
        licences.licence('some-package')


class Silent:
    """The metadata of a package that says nothing."""

    def get(self, name):
        return 'UNKNOWN' if name == 'License' else None

    def get_all(self, name):
        return None
