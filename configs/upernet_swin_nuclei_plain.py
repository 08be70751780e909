# Dense UperNet on nuclei with a backbone of one stage at stride 8, as a plain ViT has one: there are
# no maps of higher resolution that could make up for its MLPs.
_base_ = './upernet_swin_nuclei.py'

model = dict(
    backbone=dict(
        embed_dims=128,
        depths=(6,),
        num_heads=(4,),
        patch_size=8,
        strides=(8,),
        window_size=8,
        out_indices=(0,),
    ),
    decode_head=dict(in_channels=[128], in_index=[0]),
    auxiliary_head=None,
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=50, end=3000),
]
train_cfg = dict(max_iters=3000, val_interval=3000)
