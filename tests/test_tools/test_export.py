"""tools/export.py, graph and report."""

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
from tests.test_reliability.tiny import call
from tests.test_tools.segmentation import write_config

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


def test_writes_compares_and_times(trained, tmp_path, monkeypatch):
    # The weights of a large model are next to the graph.
    monkeypatch.setattr('torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD', 0)
    out, report = tmp_path / 'new' / 'model.onnx', tmp_path / 'new' / 'report.json'
    options = ['--keep-ratios', '0.5', '0.2', '--time', '--rounds', '1', '--report', report]
    code, said, error = call('export', *trained, '--out', out, *options)
    assert code == 0 and '100.000 %' in said, error
    assert {path.name for path in out.parent.glob('model*')} == {'model.onnx', 'model.onnx.data'}
    # Its norms are folded.
    assert not any(node.op_type == 'BatchNormalization' for node in onnx.load(out).graph.node)
    props = {prop.key: prop.value for prop in onnx.load(out).metadata_props}
    assert json.loads(props['classes']) == ['a', 'b', 'c']
    assert json.loads(props['mean']) == [127.0] * 3 and props['channels'] == 'BGR'
    assert json.loads(props['keep_ratios']) == [0.5, 0.2]
    told = json.loads(report.read_text())
    assert told['multiply_adds'] < told['dense_multiply_adds']
    assert told['speed_up'] == pytest.approx(told['dense_ms'] / told['ms'], abs=1e-3)
    (parity,) = told['parity']
    assert parity['holds'] and parity['images'] == 4 and parity['size'] == [64, 64]


def test_a_dense_checkpoint_is_exported_dense_only(trained, tmp_path):
    config, checkpoint = trained
    dense = checkpoint.parent / 'dense.pth'
    argv = (config, dense, '--format', 'torch-export', '--out', tmp_path / 'model.pt2')
    code, _, error = call('export', *argv)
    assert code == 2 and 'dense.pth' in error
    assert call('export', *argv, '--no-prepare', '--dense', '--batch', 2)[0] == 0
    assert (tmp_path / 'model.pt2').stat().st_size > 1000


def test_pictures_are_read_as_the_model_takes_them(tmp_path):
    import cv2
    import numpy as np

    from mmdyn.deploy.metadata import read_images
    from mmdyn.engine.picture_reader import Reader

    picture = np.zeros((6, 4, 3), np.uint8)
    picture[..., 0] = 200  # blue
    cv2.imwrite(str(tmp_path / 'blue.png'), picture)
    about = dict(channels='RGB', mean=[1.0, 2.0, 100.0], std=[1.0, 1.0, 50.0])
    got = read_images([str(tmp_path / 'blue.png')], (3, 8), about, Reader())
    assert got.shape == (1, 3, 3, 8)
    assert got[0, :, 1, 1].tolist() == [-1, -2, 2]


def test_what_is_not_installed_is_named_with_the_remedy(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    code, _, error = call('export', *trained)
    assert code == 2
    assert 'onnxruntime' in error and 'requirements/export.txt' in error
