"""An image of a padded batch is what it is alone, whatever lies in the padding."""

import pytest
import torch
import torch.nn.functional as F

from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.sparsity import GumbelPolicy, RandomPolicy, StaticPolicy


def swin(**kwargs):
    settings = dict(embed_dims=16, depths=(1, 2, 6, 2), num_heads=(1, 2, 4, 8), window_size=4)
    return DynamicSwin(**{**settings, **kwargs})


def convnext(**kwargs):
    arch = dict(depths=(1, 2, 6, 2), channels=(16, 32, 64, 128))
    return DynamicConvNeXt(arch, layer_scale_init_value=1.0, **kwargs)


def build(make, **kwargs):
    """A model whose layers, scores and paths all matter."""
    torch.manual_seed(0)
    model = make(**kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def padded(image, hw, fill=0.0):
    rows, columns = hw[0] - image.shape[-2], hw[1] - image.shape[-1]
    return F.pad(image, (0, columns, 0, rows), value=fill)


def vit(**kwargs):
    return DynamicViT(img_size=64, embed_dims=16, num_layers=4, num_heads=2, **kwargs)


BACKBONES = pytest.mark.parametrize('make', [swin, convnext])


SIZES = [(96, 160), (160, 96), (64, 64), (32, 224)]
# ConvNeXt leaves out rows and columns that don't fill a patch, where there is no padding.
ODD_SIZES = [(90, 121), (127, 33)]


@pytest.mark.parametrize(
    ('make', 'hw'),
    [*((make, hw) for make in (swin, convnext) for hw in SIZES), *((swin, hw) for hw in ODD_SIZES)],
)
@pytest.mark.parametrize('execution', ['masked', 'gathered'])
def test_beside_a_larger_image_it_is_what_it_is_alone(make, hw, execution):
    model = build(make)
    image, larger = torch.randn(1, 3, *hw), torch.randn(1, 3, 192, 256)
    batch = torch.cat([larger, padded(image, (192, 256))])
    with torch.no_grad():
        alone = model.forward_sparse(image, execution=execution)
        beside = model.forward_sparse(batch, execution=execution, valid_shapes=[(192, 256), hw])
        first = model.forward_sparse(larger, execution=execution)
    for feats, ours, others in zip(beside.feats, alone.feats, first.feats, strict=True):
        height, width = ours.shape[-2:]
        torch.testing.assert_close(feats[1:, :, :height, :width], ours, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(feats[:1], others, rtol=1e-4, atol=1e-4)
        # So that the convolutions after the backbone see what they see beyond a border.
        assert feats[1, :, height:].abs().sum() == feats[1, :, :, width:].abs().sum() == 0
    for together, single in zip(beside.decisions, alone.decisions, strict=True):
        kept = together.keep_mask[1].view(together.hw)[: single.hw[0], : single.hw[1]]
        assert torch.equal(kept.flatten(), single.keep_mask[0])
        assert together.keep_mask[1].sum() == single.keep_mask.sum()


@pytest.mark.parametrize('make', [swin, convnext, vit])
@pytest.mark.parametrize('policy', [RandomPolicy(1), StaticPolicy(1)], ids=['random', 'static'])
def test_random_choice_does_not_see_the_padding(make, policy):
    model, image = build(make), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        alone = model.forward_sparse(image, policy=policy).decisions
        assert 0 < alone[0].keep_mask.sum() < alone[0].keep_mask.numel()
        for hw, fill in (((64, 160), 0.0), ((128, 96), 0.0), ((192, 256), 3.0)):
            batch = torch.cat([torch.randn(1, 3, *hw), padded(image, hw, fill)])
            beside = model.forward_sparse(batch, policy=policy, valid_shapes=[hw, (64, 96)])
            for together, single in zip(beside.decisions, alone, strict=True):
                kept = together.keep_mask[1].view(together.hw)[: single.hw[0], : single.hw[1]]
                assert torch.equal(kept.flatten(), single.keep_mask[0])


@BACKBONES
def test_what_lies_in_the_padding_does_not_matter(make):
    model = build(make)
    image = torch.randn(1, 3, 90, 121)  # the last real locations are partly padding
    with torch.no_grad():
        zeros, noise = (
            model.forward_sparse(padded(image, (128, 160), fill), valid_shapes=[(90, 121)]).feats
            for fill in (0.0, 7.0)
        )
    for a, b, stride in zip(zeros, noise, (4, 8, 16, 32), strict=True):
        rows, columns = -(-90 // stride), -(-121 // stride)
        assert torch.equal(a[..., :rows, :columns], b[..., :rows, :columns])


@BACKBONES
def test_at_ratio_one_padding_is_seen_as_the_dense_model_sees_it(make):
    model = build(make, keep_ratios=(1.0, 1.0, 1.0))
    batch = padded(torch.randn(1, 3, 96, 96), (128, 160), 1.0)
    with torch.no_grad():
        told, untold = (
            model.forward_sparse(batch, valid_shapes=s).feats for s in ([(96, 96)], None)
        )
    for a, b in zip(told, untold, strict=True):
        assert torch.equal(a, b)


@BACKBONES
def test_padding_gets_no_gradient(make):
    model = build(make).train()
    batch = padded(torch.randn(2, 3, 64, 64), (96, 128), 1.0).requires_grad_()
    out = model.forward_sparse(batch, policy=GumbelPolicy(), valid_shapes=[(64, 64), (96, 128)])
    real = [feat[..., : 16 >> level, : 16 >> level] for level, feat in enumerate(out.feats)]
    sum(feat.sum() for feat in real).backward()
    assert batch.grad[0, :, :64, :64].abs().sum() > 0
    assert batch.grad[0, :, 64:].abs().sum() == 0 and batch.grad[0, :, :, 64:].abs().sum() == 0
    assert batch.grad[1, :, 64:].abs().sum() > 0
