# Dense twin of upernet_dynvit_camvid.py: a plain ViT, with a neck that makes maps of four sizes.
_base_ = ['./upernet_swin_camvid.py', './_base_/backbones/vit_camvid.py']

model = dict(
    backbone={{_base_.vit_camvid}},
    neck=dict(
        type='MultiLevelNeck', in_channels=[192] * 4, out_channels=192, scales=[4, 2, 1, 0.5]
    ),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'cls_token': dict(decay_mult=0.0)}
    )
)
