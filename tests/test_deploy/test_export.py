"""Exported files, compared with the model in PyTorch."""

import copy
import json
import math

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx')

import onnx
import onnxruntime

from mmdyn.analysis import count_macs
from mmdyn.deploy import check_parity, exportable, left_out, load_exported, trace
from mmdyn.deploy.job import Job, check_job, multiply_adds, write
from mmdyn.deploy.parity import Parity, reference_of
from mmdyn.models.deciding import keep_everything
from tests.test_deploy.models import BACKBONES, TILES, images, scattered, tiny_segmentor

FCN = dict(type='FCNHead', num_convs=1)


def export(model, folder, name='model.onnx', about=None, **job):
    """Check and write; returns the path."""
    job = Job('onnx' if name.endswith('.onnx') else 'torch-export', **job)
    check_job(model, job)
    write(model, job, folder / name, about or {})
    return folder / name


def same(parity):
    return parity.holds and parity.differing == 0


def executed(path, batch, folder):
    """Multiply-adds of matrix products and convolutions, from onnxruntime's profile."""
    settings = onnxruntime.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / 'profile')
    # Without optimisation: fused operators have other names, and packed weights no shape.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry('session.disable_prepacking', '1')
    session = onnxruntime.InferenceSession(str(path), settings, ['CPUExecutionProvider'])
    session.run(None, {'images': batch.numpy()})
    with open(session.end_profiling()) as file:
        events = json.load(file)
    return sum(map(cost, (e['args'] for e in events if e['name'].endswith('_kernel_time'))))


def cost(node):
    if node['op_name'] not in ('MatMul', 'Gemm', 'Conv'):
        return 0
    left, right = (next(iter(entry.values())) for entry in node['input_type_shape'][:2])
    (out,) = (next(iter(entry.values())) for entry in node['output_type_shape'])
    if node['op_name'] == 'Conv':
        return math.prod(out) * math.prod(right[1:])
    if node['op_name'] == 'Gemm':  # either side may be transposed
        return math.prod(left) * out[-1]
    return math.prod(out) * left[-1]


def test_one_channel_agrees_where_the_heads_threshold_says_so():
    one = dict(out_channels=1, num_classes=2, threshold=0.99)
    model = tiny_segmentor(head={**FCN, **one})
    expected = reference_of(model)

    def run(batch):
        return (-expected(batch)[0],)

    logits = expected(images(1))[0]
    assert (logits > 0).any() and (logits < 0).any() and logits.abs().max() < 4.5
    assert check_parity(model, run, [images(1)]).agreement == 1, 'class 0 everywhere in both'
    model.decode_head.threshold = 0.5
    assert check_parity(model, run, [images(1)]).agreement == 0


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
    counted = multiply_adds(model, batches[0])
    assert executed(path, batches[0], tmp_path) == counted
    assert counted < multiply_adds(keep_everything(copy.deepcopy(model)), batches[0])


def test_a_dense_graph_runs_no_predictor(tmp_path):
    model = keep_everything(tiny_segmentor('convnext', FCN))
    path = export(model, tmp_path, hw=(64, 48), opset=18)
    assert same(check_parity(model, load_exported(path), [images(1)]))
    written = onnx.load(path)
    assert written.opset_import[0].version == 18
    assert 'TopK' not in {node.op_type for node in written.graph.node}
    assert not [w.name for w in written.graph.initializer if 'predictors' in w.name]
    assert b'.py' not in path.read_bytes()  # no paths of the machine it was made on


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'head', 'file'),
    [
        ('swin', FCN, 'model.onnx'),
        ('convnext', {}, 'model.onnx'),
        ('vit', FCN, 'model.onnx'),
        ('swin', FCN, 'model.pt2'),
        ('vit', FCN, 'model.pt2'),
    ],
)
def test_one_graph_serves_every_size(name, head, file, tmp_path):
    model = tiny_segmentor(name, head)
    run = load_exported(export(model, tmp_path, file, hw=(64, 64), dynamic=True))
    # 9x10 and 17x10 locations: ⌊90·0.7⌋ and ⌊170·0.7⌋ differ in single precision.
    step = 16 if name == 'vit' else 8
    for rows, cols in ((4, 4), (9, 10), (17, 10), (5, 19)):
        hw = (rows * step, cols * step)
        parity = check_parity(model, run, [images(1, hw, seed) for seed in range(2)])
        assert same(parity), (hw, parity)


@pytest.mark.parametrize(
    ('name', 'tile_ratio', 'file'),
    [('swin', 0.25, 'model.onnx'), ('convnext', 0.25, 'model.pt2'), ('vit', 0.0, 'model.onnx')],
)
def test_a_head_with_tiles(name, tile_ratio, file, tmp_path):
    model = tiny_segmentor(name, {**TILES, 'tile_ratio': tile_ratio})
    path = export(model, tmp_path, file, dict(classes=['a']), hw=(72, 56), batch=2)
    batches = [images(2, (72, 56), seed) for seed in (0, 1)]
    run = load_exported(path)
    assert same(check_parity(model, run, batches))
    if file == 'model.onnx':
        counted = executed(path, batches[0], tmp_path)
    else:
        counted = count_macs(lambda: run(batches[0]))
        extra = {'mmdyn.json': ''}
        torch.export.load(path, extra_files=extra)
        assert json.loads(extra['mmdyn.json']) == {'classes': ['a']}
        with pytest.raises(RuntimeError, match=r'predictors\.0 gave NaN'):
            run(batches[0] * math.nan)
    # onnxruntime's graph computes the coarse logits once, the model twice.
    assert 0.999 < counted / multiply_adds(model, batches[0]) <= 1
    with_dense_head = copy.deepcopy(model)
    with_dense_head.decode_head.keep_everything()
    assert tile_ratio == 0 or counted < multiply_adds(with_dense_head, batches[0])


def test_a_detector_gives_its_necks_maps_and_says_what_is_left_out(tmp_path):
    mmdet = pytest.importorskip('mmdet.registry')
    from tests.test_models.test_mmdet_adapter import detector_cfg

    init_default_scope('mmdet')
    cfg = detector_cfg('MaskRCNN').model
    cfg.update(type='mmdyn.DynamicMaskRCNN')
    cfg.backbone.update(BACKBONES['swin'])
    tiles = dict(type='mmdyn.DynamicFPN', tile_size=4, tile_ratio=0.5)
    cfg.neck.update(in_channels=[8, 16], out_channels=8, num_outs=3, **tiles)
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    model = scattered(mmdet.MODELS.build(cfg))
    path = export(model, tmp_path, hw=(64, 48), batch=2)
    run = load_exported(path)
    x = images(2)
    assert [tuple(out.shape) for out in run(x)] == [(2, 8, 16, 12), (2, 8, 8, 6), (2, 8, 4, 3)]
    parity = check_parity(model, run, [x, images(2, seed=1)])
    assert same(parity) and parity.agreement is None
    reasons = left_out(model)
    assert set(reasons) == {'rpn_head', 'roi_head'} and 'RPNHead' in reasons['rpn_head']


class LooksAtData(nn.Module):
    def forward(self, maps):
        return maps if maps[0].sum() > 0 else maps[::-1]


def test_a_part_that_cannot_be_traced_is_named():
    model = tiny_segmentor()
    model.neck = LooksAtData()
    with pytest.raises(ValueError, match='LooksAtData'):
        trace(exportable(model), images(1))


def test_a_wrong_graph_is_found_out():
    model = tiny_segmentor()
    graph = exportable(model)
    assert same(check_parity(model, lambda x: (graph(x),), [images(1)]))
    model.decode_head.conv_seg.weight.data *= -1
    parity = check_parity(model, lambda x: (graph(x),), [images(1), images(1, seed=1)])
    assert not parity.holds and parity.differing == 2
    parity = check_parity(model, lambda x: (graph(x) * math.nan,), [images(1)])
    assert not parity.holds and parity.differing == 1
    assert not Parity((1, 1), 1, 1, None, math.nan, math.nan).holds


@pytest.mark.parametrize(
    ('job', 'said'),
    [
        (dict(hw=(64, 48), batch=0), 'got 0'),
        (dict(hw=(64, 0)), 'got 64x0'),
        (dict(hw=(4, 4)), '4x4'),
        (dict(hw=(64, 9000), dynamic=True), 'got 64x9000'),
        (dict(hw=(8, 64), dynamic=True), 'got 8x64: give --shape 32 64'),
    ],
)
def test_jobs_that_make_no_sense_are_refused(job, said):
    with pytest.raises(ValueError, match=said):
        check_job(tiny_segmentor('convnext'), Job('onnx', **job))
