"""tools/app.py: what it serves, and what it says if it can't."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip('gradio')

from mmdyn.analysis import demo_models
from mmdyn.app import page
from tests.test_tools.segmentation import load_tool

app = load_tool('app')


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Runs the tool in an empty folder; tells what it would have served."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    seen = {}

    def build_page(comparer, **settings):
        seen.update(settings, comparer=comparer)
        return SimpleNamespace(local_url='http://here')

    monkeypatch.setattr(os, 'environ', {**os.environ})
    monkeypatch.setattr(page, 'build_page', build_page)
    monkeypatch.setattr(page, 'serve', lambda *_, **where: seen.update(where))
    monkeypatch.setattr(page, 'wait', lambda _: None)

    def run(*argv):
        assert app.main([str(word) for word in argv]) == 0
        return seen

    return run


def test_a_model_of_the_users(served, tiny, weights, capsys):
    seen = served(tiny, weights, '--device', 'cpu', '--max-upload', 3, '--port', 9)
    assert seen['host'] == '127.0.0.1' and seen['port'] == 9
    assert seen['max_bytes'] == 3 * 2**20 and list(seen['examples']) == []
    assert seen['comparer'].dense is seen['comparer'].sparse
    assert seen['comparer'].sparse.reader.max_pixels == 40
    said = capsys.readouterr()
    assert 'http://here' in said.out and 'warning' not in said.err
    assert served(tiny, weights, '--host', '0.0.0.0')['host'] == '0.0.0.0'
    assert 'warning: --host 0.0.0.0' in capsys.readouterr().err


def test_the_demos_models_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [
        demo_models.WORK_DIR / name / f'iter_{demo_models.ITERATIONS}.pth'
        for name in ('dense', 'sparse')
    ]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    dense, sparse = map(str, files)
    models = (demo_models.SPARSE, sparse), (demo_models.DENSE, dense)
    assert app.find_models(app.parse_args([])) == models
    monkeypatch.setattr(demo_models, 'train_both', lambda *_, **__: (dense, 'new.pth'))
    assert app.find_models(app.parse_args(['--train']))[0] == (demo_models.SPARSE, 'new.pth')
    scenes = app.find_examples(app.parse_args([]), None, tmp_path)
    assert [Image.open(path).size for path in scenes] == [(512, 512)] * app.EXAMPLE_SCENES


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        ([], '--train'),
        (['CONFIG'], 'CHECKPOINT'),
        (['--dense', 'a', 'b'], '--dense'),
        (['CONFIG', 'CHECKPOINT', '--train'], '--train'),
        (['CONFIG', 'nowhere.pth'], 'nowhere.pth'),
        (['CONFIG', 'CHECKPOINT', '--max-upload', '0'], '--max-upload'),
        (['CONFIG', 'CHECKPOINT', '--max-upload', 'inf'], '--max-upload'),
        (['CONFIG', 'CHECKPOINT', '--max-pixels', '0'], 'max_pixels'),
        (['CONFIG', 'CHECKPOINT', '--max-side', '0'], '--max-side'),
        (['CONFIG', 'CHECKPOINT', '--threads', '0'], '--threads'),
        (['CONFIG', 'CHECKPOINT', '--examples', 'nowhere'], 'nowhere'),
    ],
)
def test_bad_input_ends_in_one_message(served, tiny, weights, capsys, argv, said):
    known = dict(CONFIG=tiny, CHECKPOINT=weights)
    with pytest.raises(SystemExit) as ended:
        served(*(known.get(word, word) for word in argv))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error and 'Traceback' not in error


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    monkeypatch.setattr(os, 'environ', {**os.environ})
    monkeypatch.setitem(sys.modules, 'mmdyn.app.page', None)
    monkeypatch.delattr('mmdyn.app.page')
    with pytest.raises(SystemExit) as ended:
        app.main([])
    assert ended.value.code == 2
    assert 'requirements/app.txt' in capsys.readouterr().err
