"""What is traced: the same function as the model's, before any tracing."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import PatchMerging
from torch import nn

pytest.importorskip('mmseg')

from mmdyn.deploy import exportable
from mmdyn.deploy.exportable import check_exportable
from mmdyn.deploy.stand_ins import (
    MatrixPooling,
    RankedPolicy,
    ReshapedMerging,
    kept_of,
    resampling_matrix,
)
from mmdyn.deploy.windows import GatheredWindows
from mmdyn.models.backbones.window_attention import ShiftWindowMSA
from mmdyn.sparsity.policy import Site, TopKPolicy, keep_count
from tests.test_deploy.models import BACKBONES, images, tiny_backbone, tiny_segmentor


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('hw', [(64, 48), (37, 50), (8, 8)])
@pytest.mark.parametrize('name', BACKBONES)
def test_a_copy_for_tracing_computes_what_the_model_does(name, hw):
    model = tiny_backbone(name)
    keys = model.state_dict().keys()
    x = images(hw=hw)
    expected, got, again = model(x), exportable(model)(x), model(x)
    for ours, theirs, after in zip(got, expected, again, strict=True):
        close(ours, theirs)
        assert torch.equal(theirs, after)
    assert keys == model.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        ('vit', dict(interpolate_mode='bilinear')),
        ('vit', dict(with_cls_token=False)),
        ('swin', dict(use_abs_pos_embed=True, pretrain_img_size=32)),
    ],
)
def test_position_embeddings_are_resized_as_the_backbones_do(name, changes):
    model = tiny_backbone(name, **changes)
    nn.init.normal_(model.pos_embed if name == 'vit' else model.absolute_pos_embed)
    for hw in ((32, 32), (80, 24)):
        close(exportable(model)(images(hw=hw)), model(images(hw=hw)))


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
        assert made.slow_first[1:] == expected.slow_first[1:]
        assert not made.all_slow
    assert all(
        kept_of(n, r) == keep_count(n, r) for r in (0.57, 0.343, 1e-3) for n in range(1, 3000)
    )


def test_at_ratio_1_nothing_is_scored_or_ranked():
    made = exportable(tiny_backbone('vit', keep_ratios=(1.0, 1.0)))
    assert not list(made.backbone.predictors.parameters())
    assert RankedPolicy()(torch.zeros(1, 6, 2), Site(0, 1.0, (2, 3))).all_slow


@pytest.mark.parametrize('shift', [0, 2])
@pytest.mark.parametrize('qkv_bias', [True, False])
def test_gathered_windows_are_the_shifted_windows(shift, qkv_bias):
    attention = ShiftWindowMSA(8, 2, 4, shift_size=shift, qkv_bias=qkv_bias).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    for hw in ((8, 4), (5, 7), (3, 9), (1, 1)):
        x = torch.randn(2, hw[0] * hw[1], 8)
        close(
            *(one(x, *one.layout(x, hw, None)) for one in (GatheredWindows(attention), attention))
        )


@pytest.mark.parametrize('hw', [(6, 4), (5, 7), (12, 2), (1, 1)])
def test_merging_and_pooling_are_those_they_stand_in_for(hw):
    merging, x = PatchMerging(4, 8), torch.randn(2, hw[0] * hw[1], 4)
    (ours, ours_hw), (theirs, theirs_hw) = ReshapedMerging(merging)(x, hw), merging(x, hw)
    close(ours, theirs)
    assert ours_hw == tuple(theirs_hw)
    for size in (1, 3, (2, 6)):
        pooling, x = nn.AdaptiveAvgPool2d(size), torch.randn(2, 3, *hw)
        close(MatrixPooling(pooling)(x), pooling(x))


@pytest.mark.parametrize('mode', ['bicubic', 'bilinear'])
def test_resampling_is_torchs_antialiased_one(mode):
    for size, out in ((4, 4), (4, 9), (14, 5), (3, 1)):
        x = torch.randn(1, 1, size, 2)
        expected = F.interpolate(x, (out, 2), mode=mode, antialias=True)
        close(resampling_matrix(out, size, mode, x) @ x[0, 0], expected[0, 0])


@torch.no_grad()
def test_a_segmentor_gives_logits_of_the_images_size():
    model, x = tiny_segmentor('vit'), images(hw=(48, 80))
    got = exportable(model)(x)
    assert got.shape == (2, 3, 48, 80)
    close(got, model.encode_decode(x, [dict(img_shape=(48, 80))] * 2))


TILES = dict(type='mmdyn.DynamicUPerHead', coarse_stride=8, tile_size=4)


@pytest.mark.parametrize(
    ('part', 'name', 'value', 'any_size', 'said'),
    [
        ('backbone', 'policy', lambda *_: None, False, 'function'),
        ('', 'decode_head', nn.ModuleList(), False, 'ModuleList'),
        ('', 'backbone', nn.Conv2d(3, 3, 1), False, 'Conv2d'),
        ('decode_head', 'align_corners', True, True, 'align_corners=True'),
        ('decode_head', 'tile_ratio', 1.0, True, 'DynamicUPerHead'),
        ('decode_head', 'tile_ratio', 0.5, False, 'tile_ratio=0.5'),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(part, name, value, any_size, said):
    model = tiny_segmentor(head=TILES if name == 'tile_ratio' else None)
    setattr(model.get_submodule(part), name, value)
    with pytest.raises(ValueError, match=said):
        check_exportable(model, any_size)
