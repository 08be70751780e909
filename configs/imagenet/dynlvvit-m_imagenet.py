# DynamicViT-LV-M, ImageNet-1k at 224x224, 30 epochs from the dense LV-ViT (load_from).
_base_ = ['./_base_/imagenet.py', './_base_/schedule_30e.py']

model = dict(
    # The teacher is the checkpoint of load_from.
    teacher='self',
    aux_head=True,
    backbone=dict(
        type='mmdyn.DynamicViT',
        embed_dims=512,
        num_heads=8,
        num_layers=20,
        mlp_ratio=3,
        qkv_bias=False,
        norm_cfg=dict(type='LN', eps=1e-5),
        stem_channels=64,
        skip_lam=2.0,
        out_indices=(19,),
        final_norm=True,
        sparse_blocks=(5, 10, 15),
        keep_ratios=(0.7, 0.49, 0.343),
    ),
    keep_ratio_loss=dict(type='mmdyn.KeepRatioLoss', loss_weight=2.0),
)
optim_wrapper = dict(paramwise_cfg=dict(part_lr_mult=dict(pretrained=0.01)))
