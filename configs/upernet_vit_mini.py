# Dense twin of upernet_dynvit_mini.py: the recipe of upernet_swin_mini.py, a plain ViT.
_base_ = './upernet_swin_mini.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        img_size=(128, 128),
        patch_size=8,
        embed_dims=128,
        num_layers=6,
        num_heads=4,
        out_indices=(5,),
        # As in the sparse twin, which follows timm.
        norm_cfg=dict(type='LN', eps=1e-6),
        patch_bias=True,
        final_norm=True,
    ),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'cls_token': dict(decay_mult=0.0)}
    )
)
