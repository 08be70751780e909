"""tools/get_flops.py, table and JSON."""

import json

import pytest
import torch

from mmdyn.analysis.counting import kind_of
from mmdyn.engine.loading import load_model
from tests.reference.multiply_adds import swin_macs
from tests.test_reliability.tiny import call

DENSE = ('--cfg-options', 'model.backbone.type=SwinTransformer')
BACKBONE = dict(embed_dims=8, depths=(1, 1, 4, 1), window_size=4)

DETECTOR = """
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='mmdyn.DynamicSwin', embed_dims=8, depths=(1, 1, 4, 1),
        num_heads=(1, 1, 2, 2), window_size=4),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16), mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16)),
    test_cfg=dict(
        rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=3)))
"""


@pytest.fixture
def count(segmentor, tmp_path):
    """Run the tool, by default on the tiny segmentor; returns the JSON and the output."""

    def run(*argv, config=segmentor.config):
        out = tmp_path / 'new' / 'flops.json'
        code, shown, error = call('get_flops', config, *argv, '--out', out)
        assert code == 0, error
        return json.loads(out.read_text()), ' '.join(shown.split())

    return run


def parts(report, name):
    return {part: cost['macs'] for part, cost in report['models'][name]['parts'].items()}


def test_counts_every_part_dense_and_sparse(count):
    report, shown = count('--shape', 64, 96, '--keep-ratios', 0.8, 0.8, 0.1)
    dense = swin_macs((64, 96), keep_ratios=(1, 1, 1), **BACKBONE)
    sparse = swin_macs((64, 96), keep_ratios=(0.8, 0.8, 0.1), **BACKBONE)
    head = parts(report, 'dense')['decode_head']
    assert head > 0
    assert parts(report, 'dense') == dict(backbone=dense.backbone, decode_head=head)
    assert parts(report, 'sparse') == dict(
        backbone=sparse.backbone, predictors=sparse.predictors, decode_head=head
    )
    assert report['models']['sparse']['macs'] == sum(parts(report, 'sparse').values())
    assert report['keep_ratios'] == [0.8, 0.8, 0.1]
    assert report['models']['sparse']['kept_fractions'] == [0.7917, 0.7917, 0.0833]
    assert not report['models']['sparse']['unknown']
    assert '1 MAC = 2 FLOPs' in report['unit']
    assert '= 2 GFLOPs' in shown


def test_parameters_of_a_dense_model_lack_what_only_a_sparse_one_has(count):
    report, _ = count('--shape', 64)
    models = report['models']
    more = models['sparse']['parameters'] - models['dense']['parameters']
    channels = 32
    predictor = channels * (2 + channels + 1 + 16 + 8 // 2) + 16 + 8 + 8 * 2 + 2
    fast_path = channels * (2 + channels + 1)
    assert more == 3 * predictor + 3 * fast_path
    for model in models.values():
        assert model['parameters'] == sum(p['parameters'] for p in model['parts'].values())


def test_pictures_of_a_folder_and_of_the_validation_set(segmentor, count):
    folder = segmentor.data / 'images'
    from_folder, shown = count('--images', folder)
    assert from_folder['pictures'] == dict(count=4, source=f'folder {folder}')
    assert 'mean of 4 pictures' in shown
    from_set, _ = count('--num-images', 2)
    assert from_set['pictures'] == dict(count=2, source='validation set')
    noise, _ = count('--shape', 64)  # of the same size
    for model in ('dense', 'sparse'):
        assert parts(from_folder, model) == parts(from_set, model) == parts(noise, model)


def test_a_threshold_is_counted_as_it_decides(count):
    everything, shown = count('--shape', 64, '--policy', 'ThresholdPolicy', 'threshold=0')
    assert everything['policy'] == 'ThresholdPolicy'
    assert everything['models']['sparse']['kept_fractions'] == [1.0, 1.0, 1.0]
    assert parts(everything, 'sparse')['backbone'] == parts(everything, 'dense')['backbone']
    nothing, _ = count('--shape', 64, '--policy', 'ThresholdPolicy', 'threshold=0.999')
    assert nothing['models']['sparse']['kept_fractions'] == [0.0625] * 3  # one of 4x4
    assert 'ThresholdPolicy kept' in shown


def test_weights_come_from_a_checkpoint(count, segmentor, tmp_path):
    options = ['--shape', 64, '--policy', 'ThresholdPolicy']
    report, shown = count(*options)
    assert report['checkpoint'] is None and 'Random weights' in shown
    model = load_model(str(segmentor.config)).model
    for predictor in model.backbone.predictors:
        predictor.out_proj[-1].bias.data = torch.tensor([-9.0, 9.0])
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'sure.pth')
    report, shown = count(tmp_path / 'sure.pth', *options)
    assert report['models']['sparse']['kept_fractions'] == [0.0625] * 3
    assert report['checkpoint'] and 'Random weights' not in shown


def test_a_dense_model_has_one_column(count):
    report, shown = count('--shape', 64, *DENSE)
    assert set(report['models']) == {'dense'}
    assert report['policy'] is None
    assert 'sparse' not in shown


def test_a_detectors_heads_are_counted_for_what_they_find(count, tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'detector.py').write_text(DETECTOR)
    report, shown = count('--shape', 96, 64, config=tmp_path / 'detector.py')
    assert list(parts(report, 'sparse')) == [
        *('backbone', 'predictors', 'neck', 'rpn_head', 'bbox_head', 'mask_head')
    ]
    assert all(macs > 0 for macs in parts(report, 'sparse').values())
    assert report['models']['sparse']['not_counted']['mmcv.roi_align_forward'] > 0
    assert not report['models']['sparse']['unknown']
    assert 'two-stage' in shown


def test_what_is_not_known_is_said(count, monkeypatch):
    monkeypatch.setattr(
        'mmdyn.analysis.counting.kind_of',
        lambda op: 'unknown' if 'gelu' in str(op) else kind_of(op),
    )
    report, shown = count('--shape', 64)
    assert set(report['models']['sparse']['unknown']) == {'aten.gelu'}
    assert 'LOWER BOUND' in shown and 'aten.gelu' in shown


def test_a_head_that_chooses_tiles_is_sparse_on_a_dense_backbone_too(count):
    config = 'mmdyn::upernet_dynhead_mini.py'
    report, _ = count('--shape', 128, '--policy', 'RandomPolicy', config=config)
    dense, sparse = (parts(report, model) for model in ('dense', 'sparse'))
    assert sparse['backbone'] == dense['backbone']
    assert sparse['decode_head'] < dense['decode_head'] and 'predictors' not in dense
    assert report['models']['sparse']['parameters'] > report['models']['dense']['parameters']
