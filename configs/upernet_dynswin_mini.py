# UperNet, a narrow DynamicSwin, on generated scenes: minutes on a CPU, no download.
_base_ = './upernet_swin_mini.py'

model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
)
