"""Tiny models of every sparse part, and inputs for them."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.heads import DynamicUPerHead

BACKBONES = ('swin', 'convnext', 'vit', 'vit_fast_path', 'lvvit')
CHANNELS = (8, 16, 32, 64)


class Detector(nn.Module):
    """A neck and RPN with the same tiles."""

    def __init__(self):
        super().__init__()
        from mmdyn.models.heads import DynamicRPNHead
        from mmdyn.models.necks import DynamicFPN

        self.neck = DynamicFPN(list(CHANNELS), 8, num_outs=5, tile_ratio=0.4, tile_size=4)
        self.rpn = DynamicRPNHead(
            in_channels=8,
            feat_channels=8,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator',
                scales=[8],
                ratios=[0.5, 1.0, 2.0],
                strides=[4, 8, 16, 32, 64],
            ),
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='mmdet.L1Loss'),
        )

    def forward(self, maps):
        return tuple(tuple(part) for part in self.rpn(self.neck(maps)))


def build(part):
    """A model in evaluation mode, with larger weights than initial ones."""
    torch.manual_seed(0)
    vit = dict(img_size=64, embed_dims=32, num_heads=2, num_layers=4, out_indices=(1, 3))
    made = {
        'swin': lambda: DynamicSwin(
            embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2), window_size=4
        ),
        'convnext': lambda: DynamicConvNeXt(dict(depths=(1, 1, 4, 1), channels=CHANNELS)),
        'vit': lambda: DynamicViT(**vit),
        'vit_fast_path': lambda: DynamicViT(**vit, fast_path=True),
        'lvvit': lambda: DynamicViT(**vit, stem_channels=8, skip_lam=2.0),
        'head': lambda: DynamicUPerHead(
            in_channels=CHANNELS,
            in_index=(0, 1, 2, 3),
            pool_scales=(1, 2, 3, 6),
            channels=8,
            num_classes=5,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            tile_size=8,
            tile_ratio=0.4,
            loss_decode=dict(type='mmseg.CrossEntropyLoss'),
        ),
        'detector': Detector,
    }[part]()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    return made.eval()


def images_for(part, batch, height, width, seed=0):
    """Images, or feature maps for heads."""
    generator = torch.Generator().manual_seed(seed)
    if part in BACKBONES:
        return torch.randn(batch, 3, height, width, generator=generator)
    return [
        torch.randn(batch, channels, -(-height // step), -(-width // step), generator=generator)
        for channels, step in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]


def tensors(made):
    """All tensors of an output, in order."""
    return [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]


class Launches(TorchDispatchMode):
    """Counts the operators that launch kernels: no views, no empty memory."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix('aten::').partition('.')[0]
        self.count += not (func.is_view or 'empty' in name)
        return func(*args, **(kwargs or {}))


def launches(model, x):
    """Number of launches of a warm forward."""
    with torch.no_grad():
        model(x)
        with Launches() as counted:
            model(x)
    return counted.count
