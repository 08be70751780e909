"""Results of an image in a padded batch equal those without padding."""

import pytest
import torch
import torch.nn.functional as F

from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.sparsity import GumbelPolicy, RandomPolicy, StaticPolicy, ThresholdPolicy, TopKPolicy


def swin(**kwargs):
    settings = dict(embed_dims=16, depths=(1, 2, 6, 2), num_heads=(1, 2, 4, 8), window_size=4)
    return DynamicSwin(**{**settings, **kwargs})


def one_window_swin(**kwargs):
    return swin(shift_one_window=False, **kwargs)


def convnext(**kwargs):
    arch = dict(depths=(1, 2, 6, 2), channels=(16, 32, 64, 128))
    return DynamicConvNeXt(arch, layer_scale_init_value=1.0, **kwargs)


def positioned_swin(**kwargs):
    out_indices = (3, 0, 2)  # maps are returned in the order of stages
    return swin(use_abs_pos_embed=True, pretrain_img_size=64, out_indices=out_indices, **kwargs)


def vit(**kwargs):
    settings = dict(img_size=64, embed_dims=32, num_layers=6, num_heads=2, out_indices=(1, 3, 5))
    return DynamicViT(**{**settings, **kwargs})


def vit_with_fast_path(**kwargs):
    return vit(fast_path=True, final_norm=True, with_cls_token=False, **kwargs)


def lvvit(**kwargs):
    return vit(stem_channels=8, skip_lam=2.0, qkv_bias=False, mlp_ratio=3, **kwargs)


def build(make, **kwargs):
    """A model with random weights, so that layers, scores and paths all matter."""
    torch.manual_seed(0)
    model = make(**kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def padded(image, hw, fill=0.0):
    rows, columns = hw[0] - image.shape[-2], hw[1] - image.shape[-1]
    return F.pad(image, (0, columns, 0, rows), value=fill)


MAKERS = [swin, positioned_swin, one_window_swin, convnext, vit, vit_with_fast_path, lvvit]
BACKBONES = pytest.mark.parametrize('make', MAKERS)


SIZES = [((height, 139 - height), (83, 78)) for height in range(65, 76, 2)]
SIZES += [(hw, (192, 256)) for hw in ((96, 160), (32, 224), (127, 33))]


@pytest.mark.parametrize(
    ('policy', 'ratios'),
    [
        (TopKPolicy(), (0.7, 0.5, 0.3)),
        (TopKPolicy(), (1.0, 0.5, 0.3)),
        (ThresholdPolicy(0.5), (0.7, 0.5, 0.3)),
        (RandomPolicy(1), (0.7, 0.5, 0.3)),
        (StaticPolicy(1), (0.7, 0.5, 0.3)),
    ],
    ids=['top-k', 'dense first', 'threshold', 'random', 'static'],
)
@BACKBONES
def test_beside_a_larger_image_it_is_what_it_is_alone(make, policy, ratios):
    # In double precision, so that rounding can't swap scores.
    model = build(make, keep_ratios=ratios).double()
    for hw, large in SIZES:
        image, larger = (torch.randn(1, 3, *s, dtype=torch.float64) for s in (hw, large))
        batch = torch.cat([padded(one, large, 7.0) for one in (image, larger)])
        for execution in ('gathered', 'masked'):
            how = dict(policy=policy, execution=execution)
            with torch.no_grad():
                alone, other = (model.forward_sparse(one, **how) for one in (image, larger))
                beside = model.forward_sparse(batch, valid_shapes=[hw, large], **how)
            maps = zip(beside.feats, alone.feats, other.feats, beside.shapes, strict=True)
            for feats, ours, others, shapes in maps:
                rows, columns = shapes[0]
                assert ours.shape[-2:] == shapes[0] and feats.shape[-2:] == shapes[1]
                torch.testing.assert_close(feats[:1, :, :rows, :columns], ours)
                torch.testing.assert_close(feats[1:], others)
                # Convolutions after the backbone see zeros, as beyond a border.
                assert feats[0, :, rows:].abs().sum() == feats[0, :, :, columns:].abs().sum() == 0
            for together, single in zip(beside.decisions, alone.decisions, strict=True):
                kept, (rows, columns) = together.keep_mask[0].view(together.hw), single.hw
                assert torch.equal(kept[:rows, :columns].flatten(), single.keep_mask[0])
                assert kept.sum() == single.keep_mask.sum()
                real = together.valid_mask
                assert real is None or real[0].view(together.hw)[:rows, :columns].all()
                assert real is None or real[0].sum() == rows * columns


@BACKBONES
def test_an_image_that_ends_inside_the_last_location_of_its_batch(make):
    model = build(make).double()
    image = torch.randn(
        1, 3, 79, 79, dtype=torch.float64
    )  # padded to 80x80, its maps have the batch's size
    with torch.no_grad():
        alone = model(image)
        beside = model.forward_sparse(padded(image, (80, 80), 7.0), valid_shapes=[(79, 79)]).feats
    for ours, feats in zip(alone, beside, strict=True):
        rows, columns = ours.shape[-2:]
        torch.testing.assert_close(feats[..., :rows, :columns], ours)


@pytest.mark.parametrize('hw', [(1, 1), (1, 5000), (31, 64)])
def test_an_image_too_small_for_convnext_needs_a_larger_batch(hw):
    """The hosts' augmentations produce such images and pad them; training must continue."""
    model = build(convnext)
    with pytest.raises(ValueError, match=rf'{hw[0]}x{hw[1]}.*32'):
        model(torch.zeros(1, 3, *hw))
    for ratios in [(0.7, 0.5, 0.3), (1.0, 1.0, 1.0)]:
        model.set_keep_ratios(ratios)
        out = model.forward_sparse(
            torch.randn(2, 3, 64, max(hw[1], 64)), valid_shapes=[(64, 64), hw]
        )
        locations = [max(1, hw[0] // 16) * max(1, hw[1] // 16)] * 3
        assert [int(d.valid_mask[1].sum()) for d in out.decisions] == locations
        assert all(feat.isfinite().all() for feat in out.feats)


@BACKBONES
def test_padding_gets_no_gradient(make):
    model = build(make).train()
    batch = padded(torch.randn(2, 3, 64, 64), (96, 128), 1.0).requires_grad_()
    out = model.forward_sparse(batch, policy=GumbelPolicy(), valid_shapes=[(64, 64), (96, 128)])
    sum(feat.square().sum() for feat in out.feats).backward()
    assert batch.grad[0, :, :64, :64].abs().sum() > 0
    assert batch.grad[0, :, 64:].abs().sum() == 0 and batch.grad[0, :, :, 64:].abs().sum() == 0
    assert batch.grad[1, :, 64:].abs().sum() > 0
