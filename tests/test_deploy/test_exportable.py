"""The exportable module computes the same as the model, before tracing."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')

from mmdyn.deploy import exportable
from mmdyn.deploy.exportable import check_exportable
from mmdyn.sparsity import RandomPolicy
from tests.test_deploy.models import TILES, images, tiny_backbone, tiny_segmentor


@torch.no_grad()
@pytest.mark.parametrize(
    ('hw', 'any_size'), [((32, 32), False), ((37, 50), False), ((8, 8), False), ((80, 32), True)]
)
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
def test_a_copy_for_tracing_computes_what_the_model_does(name, changes, hw, any_size):
    model = tiny_backbone(name, **changes)
    for key, parameter in model.named_parameters():
        if 'pos_embed' in key or key.endswith('bias'):
            nn.init.normal_(parameter)
    keys, x = model.state_dict().keys(), images(hw=hw)
    expected, got, again = model(x), exportable(model, any_size)(x), model(x)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert all(map(torch.equal, expected, again)) and keys == model.state_dict().keys()


@pytest.mark.parametrize(
    ('part', 'name', 'value', 'any_size', 'said'),
    [
        ('backbone', 'policy', lambda *_: None, False, 'function'),
        ('', 'decode_head', nn.ModuleList(), False, 'ModuleList'),
        ('', 'backbone', nn.Conv2d(3, 3, 1), False, 'Conv2d'),
        ('decode_head', 'align_corners', True, True, 'align_corners=True'),
        ('decode_head', 'tile_ratio', 0.5, True, 'DynamicUPerHead'),
        ('decode_head', 'policy', RandomPolicy(), False, 'the decode_head uses RandomPolicy'),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(part, name, value, any_size, said):
    model = tiny_segmentor(head=TILES if name in ('tile_ratio', 'policy') else None)
    setattr(model.get_submodule(part), name, value)
    with pytest.raises(ValueError, match=said):
        check_exportable(model, any_size)
