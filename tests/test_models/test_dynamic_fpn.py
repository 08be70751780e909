"""DynamicFPN and DynamicRPNHead against mmdet's, and in detectors."""

import itertools
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmdet')

from mmdet.models import FPN, MaskRCNN, RPNHead
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from mmdyn.analysis.flops import is_sparse
from mmdyn.analysis.lines import dense
from mmdyn.analysis.stock import stock_part_config
from mmdyn.converters.additions import is_new
from mmdyn.deploy.exportable import check_exportable
from mmdyn.engine.hooks.schedules import parts_of_runner
from mmdyn.models.deciding import tile_part
from mmdyn.models.heads import DynamicRPNHead
from mmdyn.models.necks import DynamicFPN
from mmdyn.sparsity import RandomPolicy
from mmdyn.sparsity.tile_routing import Pyramid
from mmdyn.sparsity.tiles import TileGrid
from tests.test_models.test_mmdet_adapter import batch, build, detector_cfg

NECK = dict(in_channels=[6, 8, 10, 12], out_channels=8, num_outs=5)
TILES = dict(tile_size=4, tile_ratio=0.5)
SIZES = [(32, 32), (30, 45), (13, 9)]
SPARSE = dict(
    neck=dict(
        type='mmdyn.DynamicFPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5, **TILES
    ),
    rpn_head=dict(
        type='mmdyn.DynamicRPNHead',
        in_channels=16,
        feat_channels=16,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    ),
)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')
    torch.manual_seed(0)


def maps_of(size, batch_size=2):
    maps = []
    for channels in NECK['in_channels']:
        maps.append(torch.randn(batch_size, channels, *size, requires_grad=True))
        size = tuple((side + 1) // 2 for side in size)
    return maps


def rpn_cfg():
    return {key: value for key, value in SPARSE['rpn_head'].items() if key != 'type'} | dict(
        in_channels=8, feat_channels=8
    )


def necks(**settings):
    own = NECK | {key: settings[key] for key in ('norm_cfg', 'act_cfg') if key in settings}
    dense, ours = FPN(**own), DynamicFPN(**NECK | TILES | settings)
    for name, value in dense.state_dict().items():
        if 'bn.' in name and value.dim():
            value.uniform_(0.5, 1.5)
    missing, unexpected = ours.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('predictors.') for key in missing)
    return dense.eval(), ours.eval()


NORMS = [{}, dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('norm', NORMS)
def test_with_every_tile_they_are_the_dense_ones(size, norm):
    dense, ours = necks(**norm)
    ours.set_tile_ratio(1)
    dense_rpn, rpn = RPNHead(**rpn_cfg()), DynamicRPNHead(**rpn_cfg())
    rpn.load_state_dict(dense_rpn.state_dict(), strict=False)
    maps = maps_of(size)
    out, expected = ours(maps), dense(maps)
    assert isinstance(out, Pyramid)
    for one, other in zip(out, expected, strict=True):
        torch.testing.assert_close(one, other)
    for ours_, theirs in zip(rpn(out), dense_rpn(expected), strict=True):
        for one, other in zip(ours_, theirs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('batch_size', [1, 2, 3])
def test_masked_and_gathered_agree(size, batch_size):
    _, ours = necks()
    rpn = DynamicRPNHead(**rpn_cfg())
    torch.nn.init.normal_(rpn.fast_path.weight)
    maps = maps_of(size, batch_size)
    masked, gathered = (ours.forward_sparse(maps, execution=how) for how in ('masked', 'gathered'))
    assert torch.equal(masked.tiles.decision.keep_mask, gathered.tiles.decision.keep_mask)
    results = [[*pyramid, *itertools.chain(*rpn(pyramid))] for pyramid in (masked, gathered)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('norm', NORMS)
def test_in_a_chosen_tile_they_are_the_dense_ones(norm):
    dense, ours = necks(**norm)
    dense_rpn, rpn = RPNHead(**rpn_cfg()), DynamicRPNHead(**rpn_cfg())
    rpn.load_state_dict(dense_rpn.state_dict(), strict=False)
    maps = maps_of((32, 32))
    out, expected = ours(maps), dense(maps)[0]
    keep = out.tiles.grid.spread(out.tiles.decision.keep_mask).bool()
    places = keep.unsqueeze(1).expand_as(expected)
    torch.testing.assert_close(out[0][places], expected[places])
    assert not torch.allclose(out[0][~places], expected[~places], atol=1e-2)
    # The RPN's convolution sees the merged map, as in training.
    scores = dense_rpn((out[0],))[0][0]
    places = keep.unsqueeze(1).expand_as(scores)
    torch.testing.assert_close(rpn(out)[0][0][places], scores[places])


def test_on_a_constant_map_the_fast_path_starts_as_the_convolution():
    _, loaded = necks()
    fresh = DynamicFPN(**NECK)
    fresh.init_weights()
    for neck in (fresh, loaded):
        x = torch.randn(1, 8, 1, 1).expand(1, 8, 9, 9)
        inner = neck.slow_path(x)
        torch.testing.assert_close(neck.fast_path(x)[..., 1:-1, 1:-1], inner)


def test_before_training_nothing_is_proposed_elsewhere():
    _, ours = necks()
    rpn = DynamicRPNHead(**rpn_cfg())
    rpn.init_weights()
    out = ours(maps_of((32, 32)))
    drop = ~out.tiles.grid.spread(out.tiles.decision.keep_mask).bool()
    assert (rpn(out)[0][0].permute(0, 2, 3, 1)[drop].sigmoid() < 0.011).all()


def test_padding_is_never_chosen():
    _, ours = necks(tile_ratio=0.99)
    out = ours.forward_sparse(maps_of((32, 32)), valid_shapes=[(128, 128), (40, 70)])
    rows = out.tiles.decision.keep_mask.view(2, 8, 8)
    assert rows[1, 3:].sum() == 0 and rows[1, :, 5:].sum() == 0 and rows[1, :3, :5].sum() == 14
    assert rows[0].sum() == 63
    with pytest.raises(ValueError, match='valid_shapes'):
        ours.forward_sparse(maps_of((32, 32)), valid_shapes=[(128, 128)])


def test_random_tiles_do_not_see_the_padding():
    _, ours = necks()
    maps, policy = maps_of((32, 32)), RandomPolicy(0)
    wide = [F.pad(x, (0, x.shape[-1] // 2, 0, x.shape[-2])) for x in maps]
    alone = ours.forward_sparse(maps, policy=policy).tiles.decision
    shapes = [(128, 128), (128, 128)]
    beside = ours.forward_sparse(wide, policy=policy, valid_shapes=shapes).tiles.decision
    kept = beside.keep_mask.view(2, *beside.hw)[:, :8, :8].flatten(1)
    assert torch.equal(kept, alone.keep_mask) and alone.keep_mask.sum() == 64


def test_a_map_that_ends_before_its_image_does():
    _, ours = necks(tile_ratio=0.99)
    out = ours.forward_sparse(maps_of((24, 16)), valid_shapes=[(97, 66), (97, 66)])
    assert out.tiles.decision.valid_mask is None
    out = ours.forward_sparse(maps_of((24, 16)), valid_shapes=[(97, 66), (50, 66)])
    assert out.tiles.decision.valid_mask.sum(dim=1).tolist() == [24, 16]


def test_padding_has_no_say_in_a_tiles_score():
    _, ours = necks(tile_size=8)
    for parameter in ours.predictors.parameters():
        torch.nn.init.normal_(parameter)
    seen = []
    ours.predictors[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    grid = TileGrid((16, 16), 8)
    x = torch.randn(2, 8, 16, 16)
    for noise in (0.0, 5.0):
        changed = x.clone()
        changed[0, :, 5:] += noise
        changed[0, :, :, 10:] += noise
        ours.decide(changed, grid, ours.policy, [(5, 10), (16, 16)])
    for one, other in zip(*(inputs[:2] for inputs in seen), strict=True):
        torch.testing.assert_close(one, other)


def test_the_stride_follows_the_first_level():
    assert DynamicFPN(**NECK | dict(start_level=1)).finest_stride == 8
    assert DynamicFPN(**NECK).finest_stride == 4


def test_a_single_stage_detector_gets_the_loss_from_us():
    model = build('RetinaNet')
    neck = dict(in_channels=model.neck.in_channels, out_channels=256, num_outs=5, **TILES)
    torch.manual_seed(0)
    model.neck = DynamicFPN(finest_stride=8, add_extra_convs='on_input', **neck)
    losses = model.train()(**batch(model), mode='loss')
    assert losses['loss_tile_ratio'] >= 0 and 0 < losses['tile_ratio'] < 1
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None for p in model.neck.predictors.parameters())


def test_tools_know_of_the_neck():
    model = build(**roi(SPARSE)).eval()
    assert is_sparse(model)
    with dense(model):
        assert model.neck.tile_ratio == 1
    assert model.neck.tile_ratio == 0.5
    with pytest.raises(ValueError, match='DynamicFPN needs the sizes'):
        check_exportable(model, any_size=True)
    runner = type('Runner', (), dict(model=model))
    assert parts_of_runner(runner, None) == [model.backbone, model.neck]
    for name, stock in (('neck', 'FPN'), ('rpn_head', 'RPNHead')):
        config = stock_part_config(SPARSE[name])
        assert config['type'] == stock and not {'tile_size', 'tile_ratio'} & set(config)


@pytest.mark.parametrize('adapt', [True, False])
def test_in_a_detector_everything_learns(adapt):
    """In our detector with a sparse backbone, and in the host's with a dense one."""
    backbone = {} if adapt else dict(type='SwinTransformer')
    model = build(adapt=adapt, backbone=backbone, **roi(SPARSE)).train()
    assert type(model) is not MaskRCNN if adapt else type(model) is MaskRCNN
    losses = model(**batch(model), mode='loss')
    assert 0 < losses['tile_ratio'] < 1 and losses['rpn_loss_tile_ratio'] >= 0
    total, _ = model.parse_losses(losses)
    total.backward()
    new = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if is_new(name) and not name.startswith('backbone.')
    }
    assert {name.split('.')[0] for name in new} == {'neck', 'rpn_head'}
    lacking = [name for name, grad in new.items() if grad is None or not grad.any()]
    assert not lacking
    results = model.eval()(**batch(model, training=False), mode='predict')
    assert len(results) == 2
    if adapt:
        # 96x96 after padding: of the 24x16 and 16x24 real locations, 6x4 and 4x6 tiles.
        assert [result.kept_tiles for result in results] == [0.5, 0.5]
    assert tile_part(model) is model.neck


def roi(model):
    """Narrow RoI heads in addition to the given parts."""
    box = dict(
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=16),
            mask_roi_extractor=dict(out_channels=16),
            bbox_head=dict(in_channels=16),
            mask_head=dict(in_channels=16, conv_out_channels=16),
        )
    )
    return model | box


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        (dict(tile_ratio=0), 'above 0'),
        (dict(tile_ratio=1), 'use FPN'),
        (dict(tile_ratio=1.5), 'in \\[0, 1\\], got 1.5'),
        (dict(tile_size=0), 'got 0'),
        (dict(finest_stride=-4), 'got -4'),
        (dict(tile_size='16'), "got '16'"),
        (dict(finest_stride=3.7), 'got 3.7'),
        (dict(conv_cfg=dict(type='ConvWS')), 'conv_cfg'),
        (dict(start_level=3, num_outs=1), 'at least two levels'),
    ],
)
def test_bad_arguments(settings, said):
    with pytest.raises((TypeError, ValueError), match=said):
        DynamicFPN(**NECK | settings)


def test_maps_of_another_neck_are_refused():
    dense, _ = necks()
    with pytest.raises(TypeError, match=r'mmdyn\.DynamicFPN, got maps in a tuple'):
        DynamicRPNHead(**rpn_cfg())(dense(maps_of((32, 32))))
    with pytest.raises(ValueError, match='num_convs'):
        DynamicRPNHead(num_convs=2, **rpn_cfg())


def test_tiles_are_those_of_the_image_alone_whatever_the_backbone_leaves_out():
    convnext = dict(
        type='mmdyn.DynamicConvNeXt',
        arch=dict(depths=(1, 1, 5, 1), channels=(8, 16, 32, 64)),
    )
    cfg = detector_cfg('MaskRCNN', **deepcopy(SPARSE))
    cfg.model.backbone = convnext
    cfg.model.type = 'mmdyn.DynamicMaskRCNN'
    model = MODELS.build(cfg.model).eval()
    for hw in [(65, 75), (66, 97), (130, 33)]:
        image = torch.randn(1, 3, *hw)
        inputs = torch.cat(
            [F.pad(image, (0, 130 - hw[1], 0, 130 - hw[0])), torch.randn(1, 3, 130, 130)]
        )
        with torch.no_grad():
            alone, beside = (
                model.extract_sparse(x, [dict(img_shape=shape) for shape in shapes])[0].feats
                for x, shapes in ((image, [hw]), (inputs, [hw, (130, 130)]))
            )
        rows, columns = alone.tiles.decision.hw
        decision = beside.tiles.decision
        real = decision.valid_mask[0].view(decision.hw)
        assert real.sum() == rows * columns and real[:rows, :columns].all()
        assert decision.valid_mask[1].all()
