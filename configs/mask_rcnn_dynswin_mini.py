# Mask R-CNN, a narrow DynamicSwin, on generated scenes: minutes on a CPU, no download.
_base_ = './mask_rcnn_swin_mini.py'

model = dict(
    type='mmdyn.DynamicMaskRCNN',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
)
# Gumbel sampling first, then top-k, as deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=200, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
