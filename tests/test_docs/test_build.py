"""The documentation is built without a warning, and its links out of it are not lost."""

import runpy
import subprocess
import sys

import pytest

from tests.test_docs.fences import ROOT


@pytest.mark.slow
def test_it_is_built_without_a_warning(tmp_path):
    options = ('-W', '--keep-going', '-n', '-q', 'docs', str(tmp_path))
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in tmp_path.glob('*.html')}
    assert {path.stem for path in (ROOT / 'docs').glob('*.md')} <= pages
    assert 'mmdyn.models.DynamicSwin' in (tmp_path / 'api' / 'models.html').read_text()


@pytest.mark.parametrize(
    ('repository', 'text', 'shown'),
    [
        ('', '[the results](../benchmarks/a.md#b)', 'the results (`benchmarks/a.md`)'),
        ('', '[`a.md`](../benchmarks/a.md)', '`benchmarks/a.md`'),
        ('', '[a](flops.md#b) ![c](d.png) [e](https://f)', None),
        ('https://x/m', '[a](../b/c.md#d)', '[a](https://x/m/b/c.md#d)'),
    ],
)
def test_links_out_of_the_documentation(repository, text, shown, monkeypatch):
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setenv('MMDYN_REPOSITORY', repository)
    source = [text]
    runpy.run_path(str(ROOT / 'docs' / 'conf.py'))['lead_outside'](None, 'finetune', source)
    assert source == [shown or text]
