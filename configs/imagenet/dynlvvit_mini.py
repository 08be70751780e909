# Dense to sparse: a trained lvvit_mini (load_from) learns which tokens to drop. No teacher, as in the
# other small configs.
_base_ = './lvvit_mini.py'

load_from = 'work_dirs/lvvit_mini/iter_400.pth'
model = dict(
    backbone=dict(keep_ratios=(0.5, 0.25, 0.125)),
    keep_ratio_loss=dict(type='mmdyn.KeepRatioLoss', loss_weight=2.0),
)
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(part_lr_mult=dict(pretrained=0.2)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=200),
]
# Gumbel sampling first, then top-k, as deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=100, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=200, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
