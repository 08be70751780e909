# DynamicViT-DeiT-B, ImageNet-1k at 224x224, 30 epochs from the dense DeiT (load_from).
_base_ = ['./_base_/imagenet.py', './_base_/schedule_30e.py']

model = dict(
    # The teacher is the checkpoint of load_from.
    teacher='self',
    backbone=dict(
        type='mmdyn.DynamicViT',
        embed_dims=768,
        num_heads=12,
        drop_path_rate=0.2,
        out_indices=(11,),
        final_norm=True,
        keep_ratios=(0.7, 0.49, 0.343),
    ),
    keep_ratio_loss=dict(type='mmdyn.KeepRatioLoss', loss_weight=5.0),
    feature_distill_loss=dict(type='mmdyn.FeatureDistillLoss', kept_only=True),
)
optim_wrapper = dict(paramwise_cfg=dict(part_lr_mult=dict(pretrained=0.01)))
