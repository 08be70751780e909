"""tools/get_flops.py from the command line to the table and the JSON."""

import json

import pytest
import torch
from PIL import Image

from mmdyn.analysis.counting import kind_of
from mmdyn.engine.loading import load_model
from tests.reference.multiply_adds import swin_macs
from tests.test_tools.segmentation import load_tool, write_config, write_data

DENSE = ('--cfg-options', 'model.backbone.type=SwinTransformer')
VALIDATION, NO_DATA = 'val_dataloader.dataset', ('val_dataloader=None', 'test_dataloader=None')
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


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('flops')
    return write_config(folder, write_data(folder / 'tree'))


@pytest.fixture
def count(config, tmp_path, capsys):
    """Runs the tool on the tiny segmentor, or another config; returns the JSON and the output."""

    def run(*argv, config=config):
        out = tmp_path / 'new' / 'flops.json'
        assert get_flops(config, *argv, '--out', out) == 0
        return json.loads(out.read_text()), ' '.join(capsys.readouterr().out.split())

    return run


def get_flops(*argv) -> int:
    """Runs the tool in this process; returns its exit code."""
    try:
        return load_tool('get_flops').main([str(arg) for arg in argv])
    except SystemExit as end:
        return end.code


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


def test_pictures_of_a_folder_and_of_the_validation_set(config, count):
    folder = config.parent / 'tree' / 'images'
    (folder / 'notes.txt').write_text('no picture')
    from_folder, shown = count('--images', folder)
    assert from_folder['pictures'] == dict(count=4, source=f'folder {folder}')
    assert 'mean of 4 pictures' in shown
    from_set, _ = count('--num-images', 2)
    assert from_set['pictures'] == dict(count=2, source='validation set')
    noise, _ = count('--shape', 64)  # as large as they are
    for model in ('dense', 'sparse'):
        assert parts(from_folder, model) == parts(from_set, model) == parts(noise, model)


def test_a_threshold_is_counted_as_it_decides(count, config, tmp_path):
    everything, shown = count('--shape', 64, '--policy', 'ThresholdPolicy', 'threshold=0')
    assert everything['policy'] == 'ThresholdPolicy'
    assert everything['models']['sparse']['kept_fractions'] == [1.0, 1.0, 1.0]
    assert parts(everything, 'sparse')['backbone'] == parts(everything, 'dense')['backbone']
    nothing, _ = count('--shape', 64, '--policy', 'ThresholdPolicy', 'threshold=0.999')
    assert nothing['models']['sparse']['kept_fractions'] == [0.0625] * 3  # one of 4x4
    assert 'ThresholdPolicy kept' in shown


def test_weights_come_from_a_checkpoint(count, config, tmp_path):
    options = ['--shape', 64, '--policy', 'ThresholdPolicy']
    report, shown = count(*options)
    assert report['checkpoint'] is None and 'Random weights' in shown
    model = load_model(str(config)).model
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


def test_what_is_not_known_is_said(count, config, monkeypatch):
    monkeypatch.setattr(
        'mmdyn.analysis.counting.kind_of',
        lambda op: 'unknown' if 'gelu' in str(op) else kind_of(op),
    )
    report, shown = count('--shape', 64)
    assert set(report['models']['sparse']['unknown']) == {'aten.gelu'}
    assert 'LOWER BOUND' in shown and 'aten.gelu' in shown


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        ([], '--shape --images --num-images'),
        (['--shape', 64, '--num-images', 1], 'not allowed with'),
        (['--shape', 1, 2, 3], 'got 3 numbers'),
        (['--shape', 0], '0x0'),
        (['--images', 'nowhere'], 'nowhere'),
        (['--images', 'empty'], 'empty'),
        (['--num-images', 5], '1..4'),
        (['--num-images', 0], 'got 0'),
        (['gone.pth', '--shape', 64], 'gone.pth'),
        (['--shape', 64, '--keep-ratio', 0], 'got 0'),
        (['--shape', 64, '--policy', 'ThresholdPolicy', 'threshold=1'], 'got 1'),
        (['other.pth', '--shape', 64], 'other.pth'),
        (['shapes.pth', '--shape', 64], 'size mismatch'),
        (['--shape', 64, '--policy', 'TopKPolicy', *DENSE], 'SwinTransformer'),
        (['--num-images', 1, '--cfg-options', 'val_dataloader=None'], 'no val_dataloader'),
        (['--num-images', 1, '--cfg-options', f'{VALIDATION}.data_root=gone'], 'gone/images'),
        (['--images', 'pictures', '--cfg-options', *NO_DATA], 'no test_dataloader'),
        (['--shape', 64, '--cfg-options', 'default_scope=other'], "'other'"),
    ],
)
def test_bad_input_is_one_message_and_2(config, tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'empty').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'pictures' / 'one.png')
    for name, weights in (
        ('other', {'key': torch.zeros(3)}),
        ('shapes', {'backbone.norm3.weight': torch.zeros(3)}),
    ):
        torch.save(dict(state_dict=weights), tmp_path / f'{name}.pth')
    assert get_flops(config, *argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert 'Traceback' not in error


def test_a_head_that_chooses_tiles_is_sparse_on_a_dense_backbone_too(count):
    config = 'mmdyn::upernet_dynhead_mini.py'
    report, _ = count('--shape', 128, '--policy', 'RandomPolicy', config=config)
    dense, sparse = (parts(report, model) for model in ('dense', 'sparse'))
    assert sparse['backbone'] == dense['backbone']
    assert sparse['decode_head'] < dense['decode_head'] and 'predictors' not in dense
    assert report['models']['sparse']['parameters'] > report['models']['dense']['parameters']
