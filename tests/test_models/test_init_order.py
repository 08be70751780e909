"""``init_weights`` loads the checkpoint of ``init_cfg`` last."""

from functools import partial

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmdet.models import FPN, RPNHead
from mmengine.registry import init_default_scope
from mmseg.models import UPerHead

from mmdyn.converters.additions import is_new
from mmdyn.convolutions.fast import summed_taps
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.heads import DynamicRPNHead, DynamicUPerHead
from mmdyn.models.heads.rpn_head import BACKGROUND_LOGIT
from mmdyn.models.necks import DynamicFPN, SimpleFeaturePyramid
from tests.test_models import test_mmdet_adapter, test_mmseg_adapter, test_teacher
from tests.test_models.test_dynamic_fpn import NECK, TILES, rpn_cfg
from tests.test_models.test_uper_head import HEAD

SWIN = dict(test_mmseg_adapter.BACKBONE)
SWIN.pop('type')


fpn = partial(DynamicFPN, **NECK, **TILES)
rpn = partial(DynamicRPNHead, **rpn_cfg())
tiled = partial(DynamicUPerHead, **HEAD, tile_size=4)
PARTS = dict(
    fpn=fpn,
    rpn=rpn,
    tiled=tiled,
    coarse=partial(tiled, tile_ratio=0),
    pyramid=partial(SimpleFeaturePyramid, 8, 4),
    swin=partial(DynamicSwin, **SWIN),
    convnext=partial(DynamicConvNeXt, dict(depths=(1, 1, 5, 1), channels=(8, 16, 24, 32))),
    vit=partial(DynamicViT, img_size=32, embed_dims=16, num_layers=6, num_heads=2, fast_path=True),
    segmentor=test_teacher.build,
    # Its host initialises the transformer last.
    detr=partial(test_mmdet_adapter.build, 'DeformableDETR'),
)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')
    torch.manual_seed(0)


def saved(module, path):
    """Save random numbers for all tensors; returns the ``init_cfg`` that loads them."""
    state = module.state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.uniform_()
    torch.save(dict(state_dict=state), path)
    return state, dict(type='Pretrained', checkpoint=str(path))


@pytest.mark.parametrize(
    ('name', 'kind'),
    [*((name, 'Pretrained') for name in PARTS), ('fpn', 'mmengine.Pretrained')],
)
def test_every_tensor_of_the_file_is_in_the_part(name, kind, tmp_path):
    state, init_cfg = saved(PARTS[name](), tmp_path / 'part.pth')
    init_cfg['type'] = kind
    part = PARTS[name](init_cfg=init_cfg)
    part.init_weights()
    lost = [key for key, value in part.state_dict().items() if not torch.equal(value, state[key])]
    assert not lost
    assert part.init_cfg == init_cfg


@pytest.mark.parametrize(
    ('dense', 'sparse'),
    [
        (partial(FPN, **NECK), fpn),
        (partial(RPNHead, **rpn_cfg()), rpn),
        (partial(UPerHead, **HEAD), tiled),
    ],
)
def test_a_dense_file_leaves_what_it_lacks_as_it_is_meant_to_start(dense, sparse, tmp_path):
    state, init_cfg = saved(dense(), tmp_path / 'dense.pth')
    part = sparse(init_cfg=init_cfg)
    part.init_weights()
    own = part.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    if sparse is fpn:
        assert torch.equal(own['fast_path.weight'], summed_taps(state['fpn_convs.0.conv.weight']))
    elif sparse is rpn:
        assert not own['fast_path.weight'].any()
        anchors = part.rpn_cls.out_channels
        assert own['fast_path.bias'].tolist() == pytest.approx(
            [BACKGROUND_LOGIT] * anchors + [0] * 4 * anchors
        )
    else:
        copies = [key.removeprefix('fast_path.') for key in own if key.startswith('fast_path.')]
        assert copies
        assert all(torch.equal(own[f'fast_path.{key}'], state[key]) for key in copies)


@pytest.mark.parametrize('part', [fpn, rpn, tiled])
def test_without_a_file_and_beside_other_initialisers_the_start_is_the_same(part, tmp_path):
    state, init_cfg = saved(part(), tmp_path / 'part.pth')
    fresh = part(init_cfg=[dict(type='Constant', layer='Conv2d', val=0.5, bias=0.25)])
    fresh.init_weights()
    own = fresh.state_dict()
    if part is fpn:
        assert (own['fast_path.weight'] == 4.5).all()
    elif part is rpn:
        assert not own['fast_path.weight'].any()
    else:
        assert (own['fast_path.conv_seg.weight'] == 0.5).all()
    both = part(init_cfg=[init_cfg, dict(type='Constant', layer='Conv2d', val=0.5)])
    both.init_weights()
    assert all(torch.equal(value, state[key]) for key, value in both.state_dict().items())
    torch.nn.init.ones_(both.fast_path.conv_seg.weight if part is tiled else both.fast_path.weight)
    after = {key: value.clone() for key, value in both.state_dict().items()}
    both.init_weights()  # a second call has no effect
    assert all(torch.equal(value, after[key]) for key, value in both.state_dict().items())
    assert any(is_new(key) for key in after)
