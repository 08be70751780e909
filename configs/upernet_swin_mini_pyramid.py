# Dense twin of upernet_dynhead_mini.py: a Swin with maps of stride 4, 8 and 16 and mmseg's UPerHead.
_base_ = './upernet_swin_mini.py'

model = dict(
    backbone=dict(
        embed_dims=48,
        depths=(1, 4, 1),
        num_heads=(2, 4, 8),
        patch_size=4,
        strides=(4, 2, 2),
        window_size=8,
        out_indices=(0, 1, 2),
    ),
    decode_head=dict(in_channels=[48, 96, 192], in_index=[0, 1, 2]),
)
