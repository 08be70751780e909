"""tools/test.py from the command line to the numbers."""

import json
import os

import pytest
import torch

from tests.test_tools.segmentation import load_tool, write_config, write_data


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A config and a checkpoint."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_config(folder, write_data(folder / 'tree'))
    argv = [str(config), '--work-dir', str(folder / 'work')]
    assert load_tool('train').main(argv) == 0
    return config, folder / 'work' / 'iter_2.pth'


def evaluate(*argv) -> int:
    """Runs the tool in this process; returns its exit code."""
    try:
        return load_tool('test').main([str(arg) for arg in argv])
    except SystemExit as end:
        return end.code


def scores(work_dir) -> dict:
    (path,) = work_dir.glob('*/*.json')
    return json.loads(path.read_text().splitlines()[-1])


def config_of(work_dir) -> str:
    return (work_dir / 'tiny.py').read_text()


@pytest.mark.parametrize(
    ('argv', 'ratios'),
    [
        ([], None),
        (['--keep-ratio', '0.9'], [0.9, 0.7, 0.5]),
        (['--keep-ratios', '0.8', '0.8', '0.1'], [0.8, 0.8, 0.1]),
    ],
)
def test_evaluates_at_any_keep_ratio(trained, tmp_path, argv, ratios):
    assert evaluate(*trained, '--work-dir', tmp_path, *argv) == 0
    assert 0 <= scores(tmp_path)['mIoU'] <= 100
    if ratios:
        text = config_of(tmp_path).replace('\n', '').replace(' ', '')
        assert f'keep_ratios=({",".join(map(str, ratios))},)' in text
    # What was kept of the 4x4 locations of a picture.
    kept = [scores(tmp_path)[f'keep_ratio_{number}'] for number in range(3)]
    assert kept == [round(int(16 * ratio) / 16, 4) for ratio in ratios or (0.7, 0.5, 0.3)]


def test_writes_predictions_and_drawings(trained, tmp_path):
    outputs = ['--out', tmp_path / 'labels', '--show-dir', tmp_path / 'drawings']
    # A visualizer of its own: there is one per name and process.
    options = ['default_hooks.visualization.interval=1', 'visualizer.name=second']
    argv = (*trained, '--work-dir', tmp_path / 'work', *outputs, '--cfg-options', *options)
    assert evaluate(*argv) == 0
    assert sorted(os.listdir(tmp_path / 'labels')) == ['0.png', '1.png', '2.png', '3.png']
    assert list((tmp_path / 'drawings').rglob('*.png'))


def test_augments_at_test_time(trained, tmp_path):
    assert evaluate(*trained, '--work-dir', tmp_path, '--tta') == 0
    assert 'SegTTAModel' in config_of(tmp_path)
    assert 'mIoU' in scores(tmp_path)


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['{config}', 'gone.pth'], 'gone.pth does not exist'),
        (['{config}', '{config}'], 'damaged or no checkpoint'),
        (['{config}'], 'checkpoint'),
        (['{config}', '{checkpoint}', '--keep-ratio', '0'], 'got 0'),
        (['{config}', '{checkpoint}', '--keep-ratios', '0.7'], 'one per entry'),
        (['{config}', '{checkpoint}', '--keep-ratios', '0.3', '0.5', '0.7'], 'not rise'),
        (['{config}', '{checkpoint}', '--keep-ratio', '1', '--keep-ratios', '1'], 'not allowed'),
        (
            ['{config}', '{checkpoint}', '--cfg-options', 'test_dataloader.dataset.data_root=gone'],
            'gone/images',
        ),
    ],
)
def test_bad_input_is_one_message_and_2(trained, tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('logging.raiseExceptions', False)  # see test_train.py
    config, checkpoint = trained
    assert evaluate(*(arg.format(config=config, checkpoint=checkpoint) for arg in argv)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert 'Traceback' not in error


def test_a_strangers_code_runs_only_if_trusted(trained, tmp_path, capsys):
    config, checkpoint = trained
    content = torch.load(checkpoint, weights_only=False)
    content['extra'] = MakesFolder(str(tmp_path / 'ran'))
    torch.save(content, tmp_path / 'stranger.pth')
    argv = (config, tmp_path / 'stranger.pth', '--work-dir', tmp_path / 'work')
    assert evaluate(*argv) == 2
    assert '--trust-checkpoint' in capsys.readouterr().err
    assert not (tmp_path / 'ran').exists()
    assert evaluate(*argv, '--trust-checkpoint') == 0
    assert (tmp_path / 'ran').is_dir()


class MakesFolder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)
