# DynamicSwin-B, ImageNet-1k at 224x224, 120 epochs from the dense Swin-B (load_from).
_base_ = ['./_base_/imagenet.py', './_base_/schedule_120e.py']

model = dict(
    # The teacher is the checkpoint of load_from.
    teacher='self',
    backbone=dict(
        type='mmdyn.DynamicSwin',
        embed_dims=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        drop_path_rate=0.5,
        out_indices=(3,),
        shift_one_window=False,
        keep_ratios=(0.7, 0.5, 0.3),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(part_lr_mult=dict(pretrained=0.2)))
