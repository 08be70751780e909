# Dense to sparse: fine-tunes a trained upernet_swin_camvid_half (load_from).
_base_ = './upernet_swin_camvid_half.py'

load_from = 'work_dirs/upernet_swin_camvid_half/iter_3000.pth'
model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
)
# Low learning rate for pretrained parameters, high for new ones.
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(part_lr_mult=dict(predictors=10.0, fast_path=6.0)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=20, end=400),
]
# Fast paths start close to the slow ones; then Gumbel sampling, then top-k, as deployed.
custom_hooks = [
    dict(type='mmdyn.FitFastPathsHook'),
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=130, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=400, val_interval=400)
default_hooks = dict(checkpoint=dict(interval=400))
