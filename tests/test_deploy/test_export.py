"""Files that other programs run, against the model in PyTorch."""

import json

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx')

import onnx

from mmdyn.analysis import count_macs
from mmdyn.deploy import (
    check_parity,
    executed_multiply_adds,
    exportable,
    left_out,
    load_exported,
    trace,
)
from mmdyn.deploy.job import Job, check_job, dense_twin, write
from mmdyn.deploy.parity import Parity, reference_of
from tests.test_deploy.models import BACKBONES, images, scattered, tiny_segmentor

FCN = dict(type='FCNHead', num_convs=1)


def export(model, folder, name='model.onnx', about=None, **job):
    """Checks and writes; returns the path."""
    job = Job('onnx' if name.endswith('.onnx') else 'torch-export', **job)
    check_job(model, job)
    write(model, job, folder / name, about or {})
    return folder / name


def same(parity):
    return parity.holds and parity.differing == 0


def test_one_channel_agrees_where_the_heads_threshold_says_so():
    one = dict(out_channels=1, num_classes=2, threshold=0.99)
    model = tiny_segmentor(head={**FCN, **one})
    expected = reference_of(model)

    def run(batch):
        return (-expected(batch)[0],)

    batches = [images(1)]
    logits = expected(batches[0])[0]
    assert (logits > 0).any() and (logits < 0).any() and logits.abs().max() < 4.5
    assert check_parity(model, run, batches).agreement == 1, 'class 0 everywhere in both'
    model.decode_head.threshold = 0.5
    assert check_parity(model, run, batches).agreement == 0


@pytest.mark.parametrize(
    ('name', 'head', 'batch'), [('swin', {}, 2), ('convnext', FCN, 1), ('vit', {}, 2)]
)
def test_a_segmentor_runs_in_onnxruntime(name, head, batch, tmp_path):
    model = tiny_segmentor(name, head)
    path = export(model, tmp_path, hw=(56, 44), batch=batch)
    run = load_exported(path)
    batches = [images(batch, (56, 44), seed) for seed in range(3)]
    parity = check_parity(model, run, batches)
    assert same(parity) and parity.images == 3 * batch and parity.agreement == 1
    assert not torch.equal(run(batches[0])[0], run(batches[1])[0])
    # As executed, to the last multiply-add, and that is less than the dense model's.
    sparse, dense = exportable(model), exportable(dense_twin(model))
    counted = count_macs(lambda: sparse(batches[0]))
    assert executed_multiply_adds(path, batches[0]) == counted
    assert counted < count_macs(lambda: dense(batches[0]))


def test_a_dense_graph_runs_no_predictor(tmp_path):
    model = dense_twin(tiny_segmentor('convnext', FCN))
    path = export(model, tmp_path, hw=(64, 48), opset=18)
    assert same(check_parity(model, load_exported(path), [images(1)]))
    written = onnx.load(path)
    assert written.opset_import[0].version == 18
    assert 'TopK' not in {node.op_type for node in written.graph.node}
    assert not [w.name for w in written.graph.initializer if 'predictors' in w.name]
    assert b'.py' not in path.read_bytes()  # no paths of the machine it was made on


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'head'), [('swin', FCN), ('convnext', {}), ('vit', FCN)])
def test_one_onnx_graph_serves_every_size(name, head, tmp_path):
    model = tiny_segmentor(name, head)
    run = load_exported(export(model, tmp_path, hw=(64, 64), dynamic=True))
    # 9x10 and 17x10 locations: ⌊90·0.7⌋ and ⌊170·0.7⌋ are others in single precision.
    step = 16 if name == 'vit' else 8
    for rows, cols in ((4, 4), (9, 10), (17, 10), (5, 19)):
        hw = (rows * step, cols * step)
        parity = check_parity(model, run, [images(1, hw, seed) for seed in range(2)])
        assert same(parity), (hw, parity)


def test_a_program_of_torch_serves_every_size_too(tmp_path):
    model = tiny_segmentor('convnext')
    run = load_exported(export(model, tmp_path, 'model.pt2', hw=(64, 64), dynamic=True))
    for hw in ((32, 32), (72, 80), (48, 160)):
        assert same(check_parity(model, run, [images(1, hw)]))


@pytest.mark.parametrize('name', ['model.pt2', 'model.onnx'])
@pytest.mark.parametrize('tile_ratio', [0.0, 1.0])
def test_a_head_that_has_no_tiles_to_choose(tile_ratio, name, tmp_path):
    head = dict(type='mmdyn.DynamicUPerHead', tile_ratio=tile_ratio, coarse_stride=8, tile_size=4)
    model = tiny_segmentor('swin', head)
    path = export(model, tmp_path, name, hw=(56, 44))
    assert same(check_parity(model, load_exported(path), [images(1, (56, 44), s) for s in (0, 1)]))


def test_a_program_of_torch_with_less_work_and_metadata(tmp_path):
    model = tiny_segmentor('swin')
    path = export(model, tmp_path, 'model.pt2', dict(classes=['a']), hw=(64, 48))
    assert same(check_parity(model, load_exported(path), [images(1, seed=s) for s in range(3)]))
    dense = export(dense_twin(model), tmp_path, 'dense.pt2', hw=(64, 48))
    x = images(1)
    assert executed_multiply_adds(path, x) < executed_multiply_adds(dense, x)
    extra = {'mmdyn.json': ''}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra['mmdyn.json']) == {'classes': ['a']}


def test_a_detector_gives_its_necks_maps_and_says_what_is_left_out(tmp_path):
    mmdet = pytest.importorskip('mmdet.registry')
    from tests.test_models.test_mmdet_adapter import detector_cfg

    init_default_scope('mmdet')
    cfg = detector_cfg('MaskRCNN').model
    cfg.update(type='mmdyn.DynamicMaskRCNN')
    cfg.backbone.update(BACKBONES['swin'])
    cfg.neck.update(in_channels=[8, 16], out_channels=8, num_outs=3)
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    model = scattered(mmdet.MODELS.build(cfg))
    path = export(model, tmp_path, hw=(64, 48), batch=2)
    run = load_exported(path)
    x = images(2)
    assert [tuple(out.shape) for out in run(x)] == [(2, 8, 16, 12), (2, 8, 8, 6), (2, 8, 4, 3)]
    parity = check_parity(model, run, [x, images(2, seed=1)])
    assert same(parity) and parity.agreement is None
    reasons = left_out(model)
    assert set(reasons) == {'rpn_head', 'roi_head'}
    assert 'RPNHead' in reasons['rpn_head'] and 'NMS' in reasons['rpn_head']


class LooksAtData(nn.Module):
    def forward(self, maps):
        return maps if maps[0].sum() > 0 else maps[::-1]


def test_a_part_that_cannot_be_traced_is_named():
    model = tiny_segmentor()
    model.neck = LooksAtData()
    with pytest.raises(ValueError, match="LooksAtData can't be exported with a fixed size"):
        trace(exportable(model), images(1))


def test_a_wrong_graph_is_found_out():
    model = tiny_segmentor()
    graph = exportable(model)
    assert same(check_parity(model, lambda x: (graph(x),), [images(1)]))
    model.decode_head.conv_seg.weight.data *= -1
    parity = check_parity(model, lambda x: (graph(x),), [images(1), images(1, seed=1)])
    assert not parity.holds and parity.differing == 2
    assert not Parity((1, 1), 1, 1, None, float('nan'), float('nan')).holds


@pytest.mark.parametrize(
    ('job', 'said'),
    [
        (dict(hw=(64, 48), opset=17), 'opset 17 is not supported: give one of 18 to 22'),
        (dict(hw=(64, 48), batch=0), 'batch size must be at least 1'),
        (dict(hw=(64, 0)), 'must be positive, got 64x0'),
        (dict(hw=(4, 4)), 'images of 4x4 pixels leave nothing'),
        (
            dict(hw=(60, 48), dynamic=True),
            'multiples of 8, from 32 to 8192, got 60x48: give --shape 64 48',
        ),
        (dict(hw=(64, 9000), dynamic=True), 'from 32 to 8192, got 64x9000'),
        (dict(hw=(8, 64), dynamic=True), 'got 8x64: give --shape 32 64'),
    ],
)
def test_jobs_that_make_no_sense_are_refused(job, said):
    with pytest.raises(ValueError, match=said):
        check_job(tiny_segmentor('convnext'), Job('onnx', **job))
