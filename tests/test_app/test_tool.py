"""tools/app.py: what it serves, and what it says if it can't."""

import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmdyn.analysis import demo_models
from mmdyn.app import page
from mmdyn.app.examples import COUNT, write_scenes
from mmdyn.engine.loading import load_model
from tests.test_tools.segmentation import load_tool

app = load_tool('app')


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Runs the tool in an empty folder, without gradio; tells what it would have served."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    seen = {}
    blocks = SimpleNamespace(local_url='http://here')
    monkeypatch.setattr(page, 'import_gradio', lambda: None)
    monkeypatch.setattr(
        page,
        'build_page',
        lambda comparer, limits, _, examples: (
            seen.update(comparer=comparer, limits=limits, examples=list(examples)) or blocks
        ),
    )
    monkeypatch.setattr(page, 'serve', lambda *_, **where: seen.update(where))
    monkeypatch.setattr(page, 'wait', lambda _: None)

    def run(*argv):
        assert app.main([str(word) for word in argv]) == 0
        return seen

    return run


@pytest.fixture
def checkpoint(tiny, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=load_model(tiny).model.state_dict()), path)
    return path


def test_a_model_of_the_users(served, tiny, checkpoint, capsys):
    seen = served(tiny, checkpoint, '--device', 'cpu', '--max-upload', 3, '--port', 9)
    assert seen['host'] == '127.0.0.1' and seen['port'] == 9
    assert seen['limits'].upload == 3 and seen['examples'] == []
    assert not seen['comparer'].has_twin
    said = capsys.readouterr()
    assert 'http://here' in said.out and 'warning' not in said.err


def test_other_machines_are_let_in_with_a_warning(served, tiny, checkpoint, capsys):
    assert served(tiny, checkpoint, '--host', '0.0.0.0')['host'] == '0.0.0.0'
    assert 'warning: --host 0.0.0.0' in capsys.readouterr().err


def test_the_demos_models_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [demo_models.WORK_DIR / name / 'iter_450.pth' for name in ('dense', 'sparse')]
    for file in files:
        assert demo_models.find_checkpoints(demo_models.WORK_DIR) is None
        file.parent.mkdir(parents=True)
        file.touch()
    dense, sparse = map(str, files)
    models = (demo_models.SPARSE, sparse), (demo_models.DENSE, dense)
    assert app.find_models(app.parse_args([])) == models
    assert len(app.find_examples(app.parse_args([]), None, tmp_path)) == COUNT


def test_training_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        demo_models,
        'train_both',
        lambda work_dir, **rest: asked.append((work_dir, rest['seed'])) or ('d.pth', 's.pth'),
    )
    models = (demo_models.SPARSE, 's.pth'), (demo_models.DENSE, 'd.pth')
    assert app.find_models(app.parse_args(['--train'])) == models
    assert asked == [(demo_models.WORK_DIR, 0)]


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        ([], '`make demo`'),
        ([], '--train'),
        (['CONFIG'], 'needs its CHECKPOINT'),
        (['--dense', 'a', 'b'], '--dense goes with'),
        (['CONFIG', 'CHECKPOINT', '--train'], 'leave CONFIG and CHECKPOINT out'),
        (['CONFIG', 'nowhere.pth'], 'nowhere.pth'),
        (['CONFIG', 'CHECKPOINT', '--max-upload', '0'], 'upload must be above 0'),
        (['CONFIG', 'CHECKPOINT', '--max-pixels', 'many'], '--max-pixels'),
        (['CONFIG', 'CHECKPOINT', '--threads', '0'], 'threads must be 1 or more'),
        (['CONFIG', 'CHECKPOINT', '--examples', 'nowhere'], '--examples nowhere is no folder'),
    ],
)
def test_bad_input_ends_in_one_message(served, tiny, checkpoint, capsys, argv, said):
    known = dict(CONFIG=tiny, CHECKPOINT=checkpoint)
    with pytest.raises(SystemExit) as ended:
        served(*(known.get(word, word) for word in argv))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error and 'Traceback' not in error


def test_without_gradio(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit) as ended:
        app.main([])
    assert ended.value.code == 2
    assert 'pip install -r requirements/app.txt' in capsys.readouterr().err


def test_generated_examples_are_the_same_every_time(tmp_path):
    first = [path.read_bytes() for path in write_scenes(tmp_path)]
    again = [path.read_bytes() for path in write_scenes(tmp_path)]
    assert first == again and len(set(first)) == COUNT
    assert Image.open(tmp_path / 'scene_0.png').size == (128, 128)
