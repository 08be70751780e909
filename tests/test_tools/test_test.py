"""tools/test.py."""

import json
import os

import pytest

from tests.test_reliability.tiny import call


@pytest.fixture
def trained(segmentor):
    return segmentor.config, segmentor.checkpoint


def evaluate(*argv) -> int:
    """Run the tool in this process; returns its exit code."""
    return call('test', *argv)[0]


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
    # Kept fractions of the 4x4 locations of a picture.
    kept = [scores(tmp_path)[f'keep_ratio_{number}'] for number in range(3)]
    assert kept == [round(int(16 * ratio) / 16, 4) for ratio in ratios or (0.7, 0.5, 0.3)]


def test_writes_predictions_and_drawings(trained, tmp_path):
    outputs = ['--out', tmp_path / 'labels', '--show-dir', tmp_path / 'drawings']
    options = ['--cfg-options', 'default_hooks.visualization.interval=1']
    argv = (*trained, '--work-dir', tmp_path / 'work', *outputs, *options)
    assert evaluate(*argv) == 0
    assert sorted(os.listdir(tmp_path / 'labels')) == ['0.png', '1.png', '2.png', '3.png']
    assert list((tmp_path / 'drawings').rglob('*.png'))


def test_augments_at_test_time(trained, tmp_path):
    assert evaluate(*trained, '--work-dir', tmp_path, '--tta') == 0
    assert 'SegTTAModel' in config_of(tmp_path)
    assert 'mIoU' in scores(tmp_path)


def test_prepared_it_measures_the_same(trained, tmp_path):
    found = []
    for more in ((), ('--prepare',)):
        folder = tmp_path / str(len(found))
        assert evaluate(*trained, '--work-dir', folder, *more) == 0
        found.append(scores(folder)['mIoU'])
    assert found[0] == pytest.approx(found[1], abs=0.05)


def test_weights_that_change_in_a_test_are_not_prepared(trained, tmp_path):
    argv = (*trained, '--work-dir', tmp_path, '--prepare')
    code, _, error = call('test', *argv, '--cfg-options', "custom_hooks=[dict(type='EMAHook')]")
    assert code == 2 and 'EMAHook' in error and '--prepare' in error
