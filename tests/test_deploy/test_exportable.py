"""What is traced: the same function as the model's, before any tracing."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')

from mmdyn.deploy import exportable
from mmdyn.deploy.exportable import check_exportable
from mmdyn.deploy.stand_ins import RankedPolicy, kept_of
from mmdyn.sparsity.policy import Site, TopKPolicy, keep_count
from tests.test_deploy.models import images, tiny_backbone, tiny_segmentor


@torch.no_grad()
@pytest.mark.parametrize('hw', [(32, 32), (37, 50), (8, 8), (80, 24)])
@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        ('swin', {}),
        ('swin', dict(qkv_bias=False)),
        ('swin', dict(use_abs_pos_embed=True, pretrain_img_size=32)),
        ('convnext', {}),
        ('vit', {}),
        ('vit', dict(with_cls_token=False, interpolate_mode='bilinear')),
        ('vit', dict(keep_ratios=(1.0, 1.0))),
    ],
)
def test_a_copy_for_tracing_computes_what_the_model_does(name, changes, hw):
    model = tiny_backbone(name, **changes)
    for key, parameter in model.named_parameters():
        if 'pos_embed' in key or key.endswith('bias'):
            nn.init.normal_(parameter)
    keys, x = model.state_dict().keys(), images(hw=hw)
    expected, got, again = model(x), exportable(model)(x), model(x)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert all(map(torch.equal, expected, again)) and keys == model.state_dict().keys()


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


TILES = dict(type='mmdyn.DynamicUPerHead', coarse_stride=8, tile_size=4)


@pytest.mark.parametrize(
    ('part', 'name', 'value', 'any_size', 'said'),
    [
        ('backbone', 'policy', lambda *_: None, False, 'function'),
        ('', 'decode_head', nn.ModuleList(), False, 'ModuleList'),
        ('', 'backbone', nn.Conv2d(3, 3, 1), False, 'Conv2d'),
        ('decode_head', 'align_corners', True, True, 'UPerHead'),
        ('decode_head', 'tile_ratio', 1.0, True, 'DynamicUPerHead'),
        ('decode_head', 'tile_ratio', 0.5, False, 'tile_ratio=0.5'),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(part, name, value, any_size, said):
    model = tiny_segmentor(head=TILES if name == 'tile_ratio' else None)
    setattr(model.get_submodule(part), name, value)
    with pytest.raises(ValueError, match=said):
        check_exportable(model, any_size)
