"""What is traced: the same function as the model's, before any tracing."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import PatchMerging
from torch import nn

pytest.importorskip('mmseg')

from mmdyn.deploy import exportable
from mmdyn.deploy.decisions import RankedPolicy, kept_of
from mmdyn.deploy.exportable import check_exportable
from mmdyn.deploy.stand_ins import MatrixPooling, ReshapedMerging, resampling_matrix
from mmdyn.deploy.windows import GatheredWindows
from mmdyn.models.backbones.window_attention import ShiftWindowMSA
from mmdyn.sparsity.policy import Site, TopKPolicy, keep_count
from tests.test_deploy.models import BACKBONES, images, tiny_backbone, tiny_segmentor


@pytest.mark.parametrize('hw', [(64, 48), (37, 50), (8, 8)])
@pytest.mark.parametrize('name', BACKBONES)
def test_a_copy_for_tracing_computes_what_the_model_does(name, hw):
    model = tiny_backbone(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = images(hw=hw)
    with torch.no_grad():
        expected, got = model(x), exportable(model)(x)
        again = model(x)
    for ours, theirs, after in zip(got, expected, again, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert torch.equal(theirs, after)
    assert before.keys() == model.state_dict().keys()


def test_position_embeddings_are_resized_as_the_backbones_do():
    for name, changes in (
        ('vit', dict(interpolate_mode='bilinear')),
        ('vit', dict(with_cls_token=False)),
        ('swin', dict(use_abs_pos_embed=True, pretrain_img_size=32)),
    ):
        model = tiny_backbone(name, **changes)
        table = model.pos_embed if name == 'vit' else model.absolute_pos_embed
        nn.init.normal_(table)
        for hw in ((32, 32), (80, 24)):
            x = images(hw=hw)
            with torch.no_grad():
                for ours, theirs in zip(exportable(model)(x), model(x), strict=True):
                    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('candidates', [False, True])
def test_ranks_as_the_policy_chooses_ties_included(candidates):
    scores = torch.tensor([[3.0, 1, 2, 2, 2, 0, 5, 2], [1, 1, 1, 1, 1, 1, 1, 1]])
    log_probs = torch.stack([scores, -scores], dim=-1)
    mask = None
    for index, ratio in enumerate((0.75, 0.5)):
        site = Site(index, ratio, (2, 4), candidates=mask)
        made, expected = RankedPolicy()(log_probs, site), TopKPolicy()(log_probs, site)
        mask = expected.keep_mask if candidates else None
        assert torch.equal(made.keep_mask, expected.keep_mask)
        assert set(made.keep_idx.tolist()) == set(expected.keep_idx.tolist())
        assert set(made.drop_idx.tolist()) == set(expected.drop_idx.tolist())
        assert not made.all_slow


def test_at_ratio_1_nothing_is_scored_or_ranked():
    assert not list(
        exportable(tiny_backbone('vit', keep_ratios=(1.0, 1.0))).backbone.predictors.parameters()
    )
    assert RankedPolicy()(torch.zeros(1, 6, 2), Site(0, 1.0, (2, 3))).all_slow


def test_as_many_are_kept_as_the_policy_keeps():
    for ratio in (0.7, 0.57, 0.3, 0.343, 0.001):
        assert all(kept_of(n, ratio) == keep_count(n, ratio) for n in range(1, 3000))


@pytest.mark.parametrize('shift', [0, 2])
@pytest.mark.parametrize('qkv_bias', [True, False])
def test_gathered_windows_are_the_shifted_windows(shift, qkv_bias):
    attention = ShiftWindowMSA(8, 2, 4, shift_size=shift, qkv_bias=qkv_bias).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    for hw in ((8, 4), (5, 7), (3, 9), (1, 1)):
        x = torch.randn(2, hw[0] * hw[1], 8)
        stand_in = GatheredWindows(attention)
        ours, theirs = (one(x, *one.layout(x, hw, None)) for one in (stand_in, attention))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_merging_and_pooling_are_those_they_stand_in_for():
    merging = PatchMerging(4, 8)
    for hw in ((6, 4), (5, 7)):
        x = torch.randn(2, hw[0] * hw[1], 4)
        (ours, ours_hw), (theirs, theirs_hw) = ReshapedMerging(merging)(x, hw), merging(x, hw)
        torch.testing.assert_close(ours, theirs)
        assert ours_hw == tuple(theirs_hw)
    assert not ReshapedMerging.fits(PatchMerging(4, 8, kernel_size=3, stride=2))
    for size in (1, 3, (2, 6), (None, 2)):
        pooling = nn.AdaptiveAvgPool2d(size)
        for hw in ((7, 5), (12, 2), (1, 1)):
            x = torch.randn(2, 3, *hw)
            torch.testing.assert_close(MatrixPooling(pooling)(x), pooling(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('mode', ['bicubic', 'bilinear'])
def test_resampling_is_torchs_antialiased_one(mode):
    for size, out in ((4, 4), (4, 9), (14, 5), (3, 1)):
        x = torch.randn(1, 1, size, 2)
        expected = F.interpolate(x, (out, 2), mode=mode, antialias=True)
        got = resampling_matrix(out, size, mode, x) @ x[0, 0]
        torch.testing.assert_close(got, expected[0, 0], atol=1e-5, rtol=1e-5)


def test_a_segmentor_gives_logits_of_the_images_size():
    model, x = tiny_segmentor('vit'), images(hw=(48, 80))
    with torch.no_grad():
        got = exportable(model)(x)
        expected = model.encode_decode(x, [dict(img_shape=(48, 80))] * 2)
    assert got.shape == (2, 3, 48, 80)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ('change', 'any_size', 'said'),
    [
        (lambda m: m.backbone.__setattr__('policy', lambda *_: None), False, 'decides by function'),
        (lambda m: m.__setattr__('decode_head', nn.ModuleList()), False, 'no single decode head'),
        (lambda m: m.__setattr__('backbone', nn.Conv2d(3, 3, 1)), False, 'Conv2d is no sparse'),
        (lambda m: m.decode_head.__setattr__('align_corners', True), True, 'UPerHead has align'),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(change, any_size, said):
    model = tiny_segmentor()
    change(model)
    with pytest.raises(ValueError, match=said):
        check_exportable(model, any_size)


@pytest.mark.parametrize(
    ('tile_ratio', 'any_size', 'said'),
    [(1.0, True, 'with a fixed size'), (0.5, False, 'with tile_ratio=0.5 cuts')],
)
def test_a_head_that_goes_by_tiles_is_exported_at_a_fixed_size_or_refused(
    tile_ratio, any_size, said
):
    head = dict(type='mmdyn.DynamicUPerHead', coarse_stride=8, tile_size=4, tile_ratio=tile_ratio)
    model = tiny_segmentor(head=head)
    with pytest.raises(ValueError, match=said):
        check_exportable(model, any_size)
