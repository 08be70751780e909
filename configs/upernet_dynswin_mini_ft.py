# Dense to sparse: starts from a trained upernet_swin_mini (load_from).
# No teacher: the dense model is not fully trained and would hold the sparse one back.
_base_ = './upernet_dynswin_mini.py'

load_from = 'work_dirs/upernet_swin_mini/iter_450.pth'
# Low learning rate for pretrained parameters, high for predictors, whose gradient is noisy.
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(part_lr_mult=dict(predictors=10.0, fast_path=3.0)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=20, end=450),
]
# Gumbel sampling first, then top-k, as deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=150, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=450, val_interval=450)
default_hooks = dict(checkpoint=dict(interval=450))
