# Dense to sparse: starts from a trained upernet_swin_camvid (load_from), half the iterations.
# No teacher: the dense model is not fully trained and would hold the sparse one back.
_base_ = './upernet_dynswin_camvid.py'

load_from = 'work_dirs/upernet_swin_camvid/iter_1500.pth'
# Low learning rate for pretrained parameters, high for new ones.
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(part_lr_mult=dict(predictors=10.0, fast_path=6.0)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=20, end=750),
]
# Gumbel sampling first, then top-k, as deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=250, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=750, val_interval=750)
default_hooks = dict(checkpoint=dict(interval=750))
