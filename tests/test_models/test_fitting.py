"""Fast paths fitted to slow ones by least squares."""

import pytest
import torch
import torch.nn.functional as F

from mmdyn.models.backbones import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.fitting import fit_fast_paths

SWIN = dict(embed_dims=8, depths=(1, 3), num_heads=(1, 2), strides=(4, 2), window_size=4)
BUILDERS = {
    'swin': lambda: DynamicSwin(
        **SWIN, sparse_stage=1, sparse_blocks=(1,), keep_ratios=(0.5,), out_indices=(0, 1)
    ),
    'convnext': lambda: DynamicConvNeXt(
        arch=dict(depths=(1, 3), channels=(8, 16)),
        sparse_stage=1,
        sparse_blocks=(1,),
        keep_ratios=(0.5,),
        out_indices=(0, 1),
        layer_scale_init_value=0.5,
    ),
}


@pytest.fixture(params=BUILDERS)
def backbone(request):
    torch.manual_seed(0)
    model = BUILDERS[request.param]()
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'fast_path.gamma' in name:  # dense checkpoints have none
            torch.nn.init.constant_(parameter, 1e-6)
        elif parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def sparse_blocks(model):
    return [block for block in model.blocks_of(1) if block.fast_path is not None]


def images(count=3, size=64):
    torch.manual_seed(1)
    return [torch.randn(2, 3, size, size) for _ in range(count)]


def test_a_linear_slow_path_is_recovered(backbone):
    blocks = sparse_blocks(backbone)
    for block in blocks:
        weight, bias = torch.randn(16, 16), torch.randn(16)
        gamma = 0.3
        block.slow_path = lambda x, b=block, w=weight, c=bias, g=gamma: (
            F.linear(b.fast_path.norm(x), w, c) * g
        )
    slow = [block.slow_path for block in blocks]
    shares = fit_fast_paths(backbone, images(8))
    assert shares == pytest.approx([1.0, 1.0], abs=1e-4)
    assert [block.slow_path for block in blocks] == slow
    x = torch.randn(50, 16)
    for block, wanted in zip(blocks, slow, strict=True):
        torch.testing.assert_close(block.fast_path(x), wanted(x), atol=0.03, rtol=0.01)


def test_the_share_is_that_of_the_variance_on_the_images_fitted_on(backbone):
    seen = {}
    (share, *_) = fit_fast_paths(backbone, images())
    block = sparse_blocks(backbone)[0]
    slow = block.slow_path

    def watch(x):
        seen['x'] = x
        return slow(x)

    left, total = 0.0, []
    block.slow_path = watch
    backbone.keep_everything()
    with torch.no_grad():
        for batch in images():
            backbone.eval().forward_sparse(batch)
            update = slow(seen['x']).flatten(0, 1)
            left += (block.fast_path(seen['x']).flatten(0, 1) - update).square().sum().item()
            total.append(update)
    gathered = torch.cat(total)
    assert block.fast_path.gamma is None or (block.fast_path.gamma == 1).all()
    variance = (gathered - gathered.mean(dim=0)).square().sum().item()
    assert 0 < share < 1 and share == pytest.approx(1 - left / variance, abs=2e-3)


def test_nothing_else_changes(backbone):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    dense = backbone.eval()
    dense.set_keep_ratios((1.0,))
    maps = dense(images(1)[0])
    backbone.set_keep_ratios((0.5,))
    backbone.train()
    fit_fast_paths(backbone, images(1))
    assert backbone.training and backbone.keep_ratios == (0.5,)
    changed = {
        name
        for name, value in backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed and all('fast_path.' in name for name in changed)
    backbone.eval().set_keep_ratios((1.0,))
    assert all(torch.equal(a, b) for a, b in zip(maps, backbone(images(1)[0]), strict=True))


def test_fitted_paths_are_closer_to_the_dense_backbone(backbone):
    backbone.eval()
    batch = images(1)[0]

    def error():
        with torch.no_grad():
            backbone.set_keep_ratios((1.0,))
            dense = backbone(batch)[-1]
            backbone.set_keep_ratios((0.3,))
            return (backbone(batch)[-1] - dense).square().mean()

    before = error()
    fit_fast_paths(backbone, [batch])
    assert error() < 0.7 * before


def test_what_can_not_be_fitted_is_refused(backbone):
    with pytest.raises(ValueError, match='at least one batch'):
        fit_fast_paths(backbone, [])
    vit = DynamicViT(img_size=32, patch_size=8, embed_dims=16, num_layers=4, num_heads=2)
    with pytest.raises(TypeError, match='DynamicViT'):
        fit_fast_paths(vit, images(1))
