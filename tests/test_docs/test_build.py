"""The documentation builds without warnings."""

import subprocess
import sys

from tests.test_docs.fences import ROOT


def test_it_is_built_without_a_warning(tmp_path):
    options = ('-W', '--keep-going', '-n', '-q', 'docs', str(tmp_path))
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in tmp_path.glob('*.html')}
    assert {path.stem for path in (ROOT / 'docs').glob('*.md')} <= pages
    assert 'mmdyn.models.DynamicSwin' in (tmp_path / 'api' / 'models.html').read_text()
