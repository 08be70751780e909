# DynamicSwin-T, ImageNet-1k at 224x224, 120 epochs from the dense Swin-T (load_from).
_base_ = ['./_base_/imagenet.py', './_base_/schedule_120e.py']

model = dict(
    # The teacher is the checkpoint of load_from.
    teacher='self',
    backbone=dict(
        type='mmdyn.DynamicSwin',
        embed_dims=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        drop_path_rate=0.2,
        out_indices=(3,),
        shift_one_window=False,
        keep_ratios=(0.7, 0.5, 0.3),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(part_lr_mult=dict(pretrained=0.2)))
