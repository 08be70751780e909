# A narrow UperNet Swin whose third stage has most of the blocks, as in larger models: its MLPs are
# what can be saved. Set num_classes of both heads.
_base_ = './upernet_swin_small_scale.py'

model = dict(
    backbone=dict(embed_dims=32, depths=(1, 1, 12, 1), num_heads=(1, 2, 4, 8), window_size=8),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=48),
    auxiliary_head=dict(in_channels=128, channels=48),
)
