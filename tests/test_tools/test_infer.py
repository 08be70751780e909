"""tools/infer.py: pictures and videos in; drawings, videos and JSON out."""

import json

import cv2
import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.analysis.loading import load_model
from tests.test_apis.test_sources import make_video
from tests.test_tools.segmentation import load_tool, write_config, write_data

infer = load_tool('infer')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp('infer')
    config = write_config(root, write_data(root / 'data'))
    checkpoint = root / 'weights.pth'
    torch.save(dict(state_dict=load_model(str(config)).model.state_dict()), checkpoint)
    return str(config), str(checkpoint), root / 'data' / 'images'


def test_a_folder_and_a_video(model, tmp_path, capsys):
    config, checkpoint, pictures = model
    video, out = make_video(tmp_path / 'clip.mp4'), tmp_path / 'out'
    argv = [config, checkpoint, str(pictures), str(video), '--out', str(out), '--labels']
    assert infer.main([*argv, '--keep-ratio', '0.5', '--device', 'cpu']) == 0
    assert '7 picture(s)' in capsys.readouterr().out
    results = json.loads((out / 'results.json').read_text())
    assert len(results) == 7 and results[0]['kept_fractions'] == [0.5, 0.25, 0.0625]
    assert {'0.png', '3.png', '0_labels.png', 'clip.mp4'} <= {path.name for path in out.iterdir()}
    labels = cv2.imread(str(out / '0_labels.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (64, 64) and labels.max() < 3
    written = cv2.VideoCapture(str(out / 'clip.mp4'))
    assert int(written.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    assert int(written.get(cv2.CAP_PROP_FRAME_WIDTH)) == 64
    assert written.read()[1].shape == (24, 64, 3)


def test_figures_only(model, tmp_path):
    config, checkpoint, pictures = model
    assert infer.main([config, checkpoint, str(pictures), '--out', str(tmp_path), '--no-draw']) == 0
    assert [path.name for path in tmp_path.iterdir()] == ['results.json']


@pytest.mark.parametrize(
    ('more', 'said'),
    [
        (['nowhere.png'], 'nowhere.png is no file'),
        (['--keep-ratio', '2', 'PICTURES'], 'got 2'),
        (['--tile-ratio', '0.5', '--batch-size', '1', 'PICTURES'], 'tile_ratio'),
        (['--policy', 'BestPolicy', '--batch-size', '1', 'PICTURES'], 'BestPolicy'),
    ],
)
def test_bad_input_ends_in_one_message(model, tmp_path, capsys, more, said):
    config, checkpoint, pictures = model
    more = [str(pictures) if word == 'PICTURES' else word for word in more]
    with pytest.raises(SystemExit) as ended:
        infer.main([config, checkpoint, *more, '--out', str(tmp_path / 'out')])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_what_a_checkpoint_lacks_is_not_predicted_with(model, tmp_path, capsys):
    config, checkpoint, pictures = model
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    for name, lacking in (('dense', ('predictors.', 'fast_path')), ('part', ('decode_head.',))):
        kept = {k: v for k, v in state.items() if not any(part in k for part in lacking)}
        torch.save(dict(state_dict=kept), tmp_path / f'{name}.pth')

    def run(name, *more):
        argv = [config, tmp_path / f'{name}.pth', pictures, '--out', tmp_path / 'out', *more]
        return infer.main([str(word) for word in argv])

    for name, more, lost in (('dense', [], 'backbone.'), ('part', ['--keep-ratio', '1'], 'decode')):
        with pytest.raises(SystemExit) as ended:
            run(name, *more)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert f'{name}.pth' in error and f'e.g. {lost}' in error and 'Traceback' not in error
        assert not (tmp_path / 'out').exists()
    assert run('dense', '--keep-ratio', '1') == 0
