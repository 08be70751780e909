"""docs/quickstart.ipynb: it runs, and what is committed of it is fit to be shown."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / 'docs' / 'quickstart.ipynb'
CONTENT = json.loads(NOTEBOOK.read_text())
CODE = [cell for cell in CONTENT['cells'] if cell['cell_type'] == 'code']
# Where somebody's files lie, and which Python ran it.
PRIVATE = re.compile(r'/(home|root|tmp|Users|work|usr|opt|var)/|[A-Z]:\\\\|site-packages|\.venv')


def outputs():
    return [output for cell in CODE for output in cell['outputs']]


def test_code_passes_ruff():
    for command in (['check'], ['format', '--check']):
        done = subprocess.run(
            [sys.executable, '-m', 'ruff', *command, str(NOTEBOOK)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_was_run_once_top_to_bottom():
    assert [cell['execution_count'] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {output['output_type'] for output in outputs()}
    assert kinds == {'stream', 'execute_result'}  # no errors
    shown = [kind for output in outputs() for kind in output.get('data', ())]
    assert shown.count('image/jpeg') == 2 and shown.count('text/markdown') == 2


def test_it_is_small_and_tells_nothing_of_a_machine():
    assert NOTEBOOK.stat().st_size < 500_000
    assert not PRIVATE.search(json.dumps(outputs()))
    assert not [output for output in outputs() if output.get('name') == 'stderr']
    ids = [cell['id'] for cell in CONTENT['cells']]
    assert ids == [f'cell-{i:02d}' for i in range(len(ids))]
    assert set(CONTENT['metadata']) == {'kernelspec', 'language_info'}
    assert CONTENT['metadata']['language_info'] == {'name': 'python'}
    assert not any(cell['metadata'] for cell in CONTENT['cells'])


def test_the_files_it_names_exist():
    text = ''.join(line for cell in CONTENT['cells'] for line in cell['source'])
    named = re.findall(r'`((?:docs|benchmarks|tools)/[\w./]+)`', text)
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.slow
def test_it_runs_top_to_bottom(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / 'docs'))
    run_notebook = importlib.import_module('run_notebook')
    before = NOTEBOOK.read_bytes()
    # Several times what it takes: other work may run beside the tests.
    executed = run_notebook.execute(NOTEBOOK, tmp_path, seconds=900)
    assert NOTEBOOK.read_bytes() == before
    assert not list(tmp_path.iterdir())  # what it makes is in a folder of its own
    text = ''.join(
        output.get('text', '') for cell in executed.cells for output in cell.get('outputs', ())
    )
    assert 'masked and gathered execution agree' in text
    assert 'keep ratio 0.7: kept [0.7, 0.5, 0.3]' in text
