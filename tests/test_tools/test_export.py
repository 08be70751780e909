"""tools/export.py from the command line to a graph and a report."""

import json
import sys

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx')

import onnx
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from tests.test_deploy.models import STAGES, scattered
from tests.test_tools.segmentation import load_tool, write_config

TINY = """
_base_ = './tiny.py'
model = dict(
    backbone=dict(_delete_=True, type='mmdyn.DynamicSwin', embed_dims=8, depths=(1, 3),
                  num_heads=(1, 2), strides=(4, 2), window_size=4, **STAGES),
    decode_head=dict(in_channels=16, in_index=1))
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A config and a checkpoint."""
    folder = tmp_path_factory.mktemp('trained')
    write_config(folder, folder / 'no data')
    config = folder / 'two_stages.py'
    config.write_text(TINY.replace('STAGES', repr(STAGES)))
    init_default_scope('mmseg')
    model = scattered(MODELS.build(Config.fromfile(config).model))
    content = dict(
        state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b', 'c')))
    )
    torch.save(content, folder / 'model.pth')
    dense = {k: v for k, v in content['state_dict'].items() if 'predictors' not in k}
    torch.save(dense, folder / 'dense.pth')
    return config, folder / 'model.pth'


def export(*argv) -> int:
    """Runs the tool in this process; returns its exit code."""
    try:
        return load_tool('export').main([str(arg) for arg in argv])
    except SystemExit as end:
        return end.code


def test_writes_compares_and_times(trained, tmp_path, capsys, monkeypatch):
    # A large model's weights lie beside the graph.
    monkeypatch.setattr('torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD', 0)
    out, report = tmp_path / 'new' / 'model.onnx', tmp_path / 'new' / 'report.json'
    options = ['--keep-ratios', '0.5', '0.2', '--time', '--rounds', '1', '--report', report]
    assert export(*trained, '--out', out, *options) == 0
    assert {path.name for path in out.parent.glob('model*')} == {'model.onnx', 'model.onnx.data'}
    props = {prop.key: prop.value for prop in onnx.load(out).metadata_props}
    assert json.loads(props['classes']) == ['a', 'b', 'c']
    assert json.loads(props['mean']) == [127.0] * 3 and props['channels'] == 'BGR'
    assert json.loads(props['keep_ratios']) == [0.5, 0.2]
    told = json.loads(report.read_text())
    assert told['multiply_adds'] < told['dense_multiply_adds']
    assert told['speed_up'] == pytest.approx(told['dense_ms'] / told['ms'], abs=1e-3)
    (parity,) = told['parity']
    assert parity['holds'] and parity['images'] == 4 and parity['size'] == [64, 64]
    assert '100.000 %' in capsys.readouterr().out


def test_a_dense_checkpoint_is_exported_dense_only(trained, tmp_path, capsys):
    config, checkpoint = trained
    dense = checkpoint.parent / 'dense.pth'
    argv = (config, dense, '--format', 'torch-export', '--out', tmp_path / 'model.pt2')
    assert export(*argv) == 2
    assert 'dense.pth' in capsys.readouterr().err
    assert export(*argv, '--dense', '--batch', '2') == 0
    assert (tmp_path / 'model.pt2').stat().st_size > 1000


def test_pictures_are_read_as_the_model_takes_them(tmp_path):
    import cv2
    import numpy as np

    from mmdyn.deploy.load import read_images
    from mmdyn.engine.reading import Reader

    picture = np.zeros((6, 4, 3), np.uint8)
    picture[..., 0] = 200  # blue
    cv2.imwrite(str(tmp_path / 'blue.png'), picture)
    about = dict(channels='RGB', mean=[1.0, 2.0, 100.0], std=[1.0, 1.0, 50.0])
    got = read_images([str(tmp_path / 'blue.png')], (3, 8), about, Reader())
    assert got.shape == (1, 3, 3, 8)
    assert got[0, :, 1, 1].tolist() == [-1, -2, 2]


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        ('CONFIG gone.pth', 'gone.pth'),
        ('CONFIG CONFIG', 'damaged or no checkpoint'),
        ('--format tensorrt', 'tensorrt'),
        ('--shape 60 64 --dynamic', 'give --shape 64 64'),
        ('--opset 11', '18 to 22'),
        ('--opset 18 --format torch-export', '--opset'),
        ('--keep-ratio 0', 'got 0'),
        ('--keep-ratios 0.7', '2 predictors'),
        ('--out model.pt2', 'model.pt2'),
        ('--report .', '--report .'),
        ('--images gone.png', 'gone.png'),
        ('--cfg-options model.backbone.mlp_ratio=2', 'another model than the config'),
        ('--cfg-options model.data_preprocessor.size=None', '--shape H W'),
        ('--cfg-options model.backbone.policy.type=mmdyn.ThresholdPolicy', 'ThresholdPolicy'),
    ],
)
def test_bad_input_is_one_message_and_2(trained, tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    words = [str(trained[0]) if word == 'CONFIG' else word for word in argv.split()]
    assert export(*([] if 'CONFIG' in argv else trained), *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert 'Traceback' not in error
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named_with_the_remedy(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert export(*trained) == 2
    error = capsys.readouterr().err
    assert 'onnxruntime' in error and 'requirements/export.txt' in error
