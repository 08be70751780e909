"""Tiny sparse models of two stages or three blocks, with distinct scores."""

import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import mmdyn.models  # noqa: F401, registers

SPARSITY = dict(keep_ratios=(0.7, 0.4))
STAGES = dict(sparse_stage=1, sparse_blocks=(1, 2), out_indices=(0, 1), **SPARSITY)
BACKBONES = dict(
    swin=dict(
        type='mmdyn.DynamicSwin',
        embed_dims=8,
        depths=(1, 3),
        num_heads=(1, 2),
        strides=(4, 2),
        window_size=4,
        **STAGES,
    ),
    convnext=dict(
        type='mmdyn.DynamicConvNeXt',
        arch=dict(depths=[1, 3], channels=[8, 16]),
        layer_scale_init_value=1.0,
        **STAGES,
    ),
    vit=dict(
        type='mmdyn.DynamicViT',
        img_size=32,
        patch_size=8,
        embed_dims=16,
        num_layers=3,
        num_heads=2,
        sparse_blocks=(1, 2),
        out_indices=(0, 2),
        **SPARSITY,
    ),
)

TILES = dict(type='mmdyn.DynamicUPerHead', coarse_stride=16, tile_size=8)


def tiny_backbone(name, **changes):
    init_default_scope('mmseg')
    return scattered(MODELS.build({**BACKBONES[name], **changes}))


def tiny_segmentor(name='swin', head=None):
    """A segmentor with an UPerHead or FCNHead; the ViT has a pyramid as neck."""
    init_default_scope('mmseg')
    widths = [16, 16] if name == 'vit' else [8, 16]
    neck = dict(type='MultiLevelNeck', in_channels=[16, 16], out_channels=16, scales=[2, 1])
    settings = dict(channels=8, num_classes=3, align_corners=False, norm_cfg=dict(type='SyncBN'))
    if head and head.get('type') == 'FCNHead':
        settings |= dict(in_channels=16, in_index=1)
    else:
        settings |= dict(type='UPerHead', in_channels=widths, in_index=[0, 1], pool_scales=(1, 3))
    model = MODELS.build(
        dict(
            type='mmdyn.DynamicEncoderDecoder',
            backbone=BACKBONES[name],
            neck=neck if name == 'vit' else None,
            decode_head={**settings, **(head or {})},
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    )
    return scattered(model)


def scattered(model):
    """Draw large weights, so that predictors distinguish locations."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            spread = parameter[0].numel() ** -0.5
            parameter.data.normal_(0, spread, generator=generator)
    return model.eval()


def images(count=2, hw=(64, 48), seed=0):
    return torch.randn(count, 3, *hw, generator=torch.Generator().manual_seed(seed))
