# UperNet, a narrow DynamicViT, on generated scenes: minutes on a CPU, no download.
_base_ = './upernet_vit_mini.py'

model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(
        type='mmdyn.DynamicViT',
        keep_ratios=(0.7, 0.49, 0.343),
        sparse_blocks=(1, 2, 3),
    ),
)
