"""tools/infer.py: drawings, videos and JSON of pictures and videos."""

import json

import cv2
import pytest
import torch

pytest.importorskip('mmseg')

from tests.test_apis.test_sources import make_video
from tests.test_reliability.tiny import call


def test_a_folder_and_a_video(segmentor, tmp_path):
    config, checkpoint, pictures = segmentor.config, segmentor.checkpoint, segmentor.data / 'images'
    video, out = make_video(tmp_path / 'clip.mp4'), tmp_path / 'out'
    argv = [config, checkpoint, pictures, video, '--out', out, '--labels']
    code, shown, error = call('infer', *argv, '--keep-ratio', 0.5, '--device', 'cpu')
    assert code == 0 and '7 picture(s)' in shown, error
    results = json.loads((out / 'results.json').read_text())
    assert len(results) == 7 and results[0]['kept_fractions'] == [0.5, 0.25, 0.0625]
    assert {'0.png', '3.png', '0_labels.png', 'clip.mp4'} <= {path.name for path in out.iterdir()}
    labels = cv2.imread(str(out / '0_labels.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (64, 64) and labels.max() < 3
    written = cv2.VideoCapture(str(out / 'clip.mp4'))
    assert int(written.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    assert int(written.get(cv2.CAP_PROP_FRAME_WIDTH)) == 64
    assert written.read()[1].shape == (24, 64, 3)


def test_figures_only(segmentor, tmp_path):
    argv = (segmentor.config, segmentor.checkpoint, segmentor.data / 'images', '--no-draw')
    assert call('infer', *argv, '--no-prepare', '--out', tmp_path)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ['results.json']


def test_what_a_checkpoint_lacks_is_not_predicted_with(segmentor, tmp_path):
    state = torch.load(segmentor.checkpoint, weights_only=True)['state_dict']

    def run(name, lacking, *more):
        kept = {k: v for k, v in state.items() if not any(part in k for part in lacking)}
        torch.save(dict(state_dict=kept), tmp_path / f'{name}.pth')
        argv = (segmentor.config, tmp_path / f'{name}.pth', segmentor.data / 'images', *more)
        return call('infer', *argv, '--out', tmp_path / 'out')

    new, dense = ('predictors.', 'fast_path'), ('--keep-ratio', 1)
    for case, lost in (
        (('dense', new), 'backbone.'),
        (('part', ('decode_head.',), *dense), 'decode'),
    ):
        code, _, error = run(*case)
        assert code == 2
        assert f'{case[0]}.pth' in error and f'e.g. {lost}' in error and 'Traceback' not in error
        assert not (tmp_path / 'out').exists()
    assert run('dense', new, *dense)[0] == 0
