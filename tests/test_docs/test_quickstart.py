"""docs/quickstart.ipynb runs, and its committed version is presentable."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / 'docs' / 'quickstart.ipynb'
CONTENT = json.loads(NOTEBOOK.read_text())
CODE = [cell for cell in CONTENT['cells'] if cell['cell_type'] == 'code']
# Personal paths and Python versions.
PRIVATE = re.compile(r'/(home|root|tmp|Users|work|usr|opt|var)/|[A-Z]:\\\\|site-packages|\.venv')


def test_it_was_run_once_top_to_bottom_and_tells_nothing_of_a_machine():
    assert [cell['execution_count'] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell['outputs']]
    assert {output['output_type'] for output in outputs} == {'stream', 'execute_result'}
    assert 'stderr' not in {output.get('name') for output in outputs}
    assert sum('image/jpeg' in output.get('data', ()) for output in outputs) == 2
    assert not PRIVATE.search(json.dumps(outputs))
    assert NOTEBOOK.stat().st_size < 500_000


def test_the_files_it_names_exist():
    text = ''.join(line for cell in CONTENT['cells'] for line in cell['source'])
    named = re.findall(r'`((?:docs|benchmarks|tools)/[\w./]+)`', text)
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.slow
def test_it_runs_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'docs'))
    executed = importlib.import_module('run_notebook').execute(NOTEBOOK, tmp_path)
    assert not list(tmp_path.iterdir())  # what it makes is in a folder of its own
    text = ''.join(
        output.get('text', '') for cell in executed.cells for output in cell.get('outputs', ())
    )
    assert 'masked and gathered execution agree' in text
    losses = [float(loss) for loss in re.findall(r'loss ([\d.]+)', text)]
    assert losses[-1] < losses[0]
    assert 'keep ratio 0.7: kept [0.7, 0.5, 0.3]' in text
