"""Necks that make a pyramid of the ViT's maps of one stride."""

import pytest
import torch

import mmdyn  # noqa: F401, registers the config look-up
from mmdyn.models.necks import SimpleFeaturePyramid

VIT = "type='mmdyn.DynamicViT', img_size=64, embed_dims=32, num_heads=4"


def test_levels_of_the_pyramid():
    neck = SimpleFeaturePyramid(32, out_channels=8, num_outs=6)
    maps = [torch.randn(2, 32, 6, 10), torch.randn(2, 32, 6, 10, requires_grad=True)]
    outs = neck(maps)
    assert [tuple(out.shape[1:]) for out in outs] == [
        (8, 24, 40),
        (8, 12, 20),
        (8, 6, 10),
        (8, 3, 5),
        (8, 2, 3),
        (8, 1, 2),
    ]
    sum(out.square().mean() for out in outs).backward()
    assert (maps[1].grad != 0).all()
    for name, parameter in neck.named_parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name
    assert [tuple(out.shape[2:]) for out in neck([torch.randn(1, 32, 1, 3)])] == [
        (4, 12),
        (2, 6),
        (1, 3),
        (1, 2),
        (1, 1),
        (1, 1),
    ]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [(dict(in_channels=30), 'got 30'), (dict(in_channels=32, num_outs=3), 'num_outs=3')],
)
def test_wrong_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(**kwargs)


def test_a_detector_trains_and_predicts_on_it(tmp_path):
    pytest.importorskip('mmdet')
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.structures import InstanceData

    (tmp_path / 'rpn.py').write_text(
        "_base_ = 'mmdet::_base_/models/rpn_r50_fpn.py'\n"
        f'model = dict(backbone=dict(_delete_=True, {VIT}),\n'
        "    neck=dict(_delete_=True, type='mmdyn.SimpleFeaturePyramid', in_channels=32))\n"
    )
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(tmp_path / 'rpn.py').model)
    model.init_weights()
    sample = DetDataSample(metainfo=dict(img_shape=(90, 120), batch_input_shape=(96, 128)))
    sample.set_metainfo(dict(ori_shape=(90, 120), scale_factor=(1.0, 1.0), pad_shape=(96, 128)))
    boxes = torch.tensor([[5.0, 5, 40, 40], [50, 20, 110, 80]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros(2, dtype=torch.long))
    x = torch.randn(1, 3, 96, 128)
    model.eval()
    losses = model(x, [sample], mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite() and (model.backbone.pos_embed.grad != 0).any()
    with torch.no_grad():
        (found,) = model(x, [sample], mode='predict')
    assert len(found.pred_instances) > 0
