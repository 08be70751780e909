"""The documentation is built without a warning, and its links out of it are not lost."""

import runpy
import subprocess
import sys

import pytest

from tests.test_docs.fences import ROOT

OPTIONS = ('-W', '--keep-going', '-n', '-q')


def build(source, target, *options):
    return subprocess.run(
        [sys.executable, '-m', 'sphinx', *OPTIONS, *options, str(source), str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_it_is_built_without_a_warning(tmp_path):
    done = build(ROOT / 'docs', tmp_path / 'html')
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / 'html').glob('*.html')}
    assert {path.stem for path in (ROOT / 'docs').glob('*.md')} <= pages
    assert 'mmdyn.models.DynamicSwin' in (tmp_path / 'html' / 'api' / 'models.html').read_text()


def test_faults_end_the_build(tmp_path):
    faults = {
        '[a](nowhere.md)': "'nowhere.md'",
        '[a](#no-heading)': "'no-heading'",
        '```{nothing}\n```': "'nothing'",
        '{py:func}`mmdyn.none`': 'mmdyn.none',
        '{py:func}`torch.none`': None,
    }
    (tmp_path / 'index.md').write_text('# Title\n\n' + '\n\n'.join(faults))
    done = build(tmp_path, tmp_path / 'html', '-c', str(ROOT / 'docs'))
    warnings = [line for line in done.stderr.splitlines() if 'WARNING' in line]
    expected = [named for named in faults.values() if named]
    assert done.returncode != 0 and len(warnings) == len(expected), done.stderr
    assert all(any(named in line for line in warnings) for named in expected)


@pytest.mark.parametrize(
    ('repository', 'text', 'shown'),
    [
        ('', '[the results](../benchmarks/a.md#b)', 'the results (`benchmarks/a.md`)'),
        ('', '[benchmarks/a.md](../benchmarks/a.md)', '`benchmarks/a.md`'),
        ('', '[a](flops.md#b) ![c](images/d.png)', '[a](flops.md#b) ![c](images/d.png)'),
        ('', '[a](https://x.org/b)', '[a](https://x.org/b)'),
        (
            'https://x.org/m/blob/main',
            '[a](../b/c.md#d)',
            '[a](https://x.org/m/blob/main/b/c.md#d)',
        ),
    ],
)
def test_links_out_of_the_documentation(repository, text, shown, monkeypatch):
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setenv('MMDYN_REPOSITORY', repository)
    source = [text]
    runpy.run_path(str(ROOT / 'docs' / 'conf.py'))['lead_outside'](None, 'finetune', source)
    assert source == [shown]
