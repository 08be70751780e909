# UperNet, a narrow DynamicSwin, on generated scenes: minutes on a CPU, no download.
_base_ = './upernet_swin_mini.py'

model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(
        type='mmdyn.DynamicSwin',
        keep_ratios=(0.7, 0.5, 0.3),
        sparse_stage=0,
        sparse_blocks=(0, 1, 2),
    ),
)
