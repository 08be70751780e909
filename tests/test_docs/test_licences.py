"""The page on licences lists everything installed."""

import importlib
import re
import sys

import pytest

from tests.test_docs.fences import ROOT
from tests.torch_line import of_the_maintained_line

pytestmark = of_the_maintained_line


@pytest.fixture
def licences(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'docs'))
    return importlib.import_module('list_licences')


def test_everything_installed_is_on_the_page(licences):
    page = licences.PAGE.read_text(encoding='utf-8')
    rows = dict(re.findall(r'^\| ([a-z0-9-]+) \| (.+) \|$', page, re.MULTILINE))
    files = {path.stem for path in (ROOT / 'requirements').glob('*.txt')}
    listed = {*licences.RUNS_ON, *licences.BESIDE}
    assert files - {'benchmark', 'constraints', 'lock', 'optional', 'original'} == listed
    assert {
        licences.name_of(need.name) for file in listed for need in licences.direct(file)
    } <= set(rows)
    # Other Pythons and platforms add a few packages, and torch's own licences differ.
    if sys.version_info[:2] == (3, 11) and sys.platform == 'linux':
        now = {package: name for part in licences.installed() for package, name in part.items()}
        assert now.items() <= rows.items()
