# Dense to sparse: a trained upernet_swin-t_nuclei (load_from) gets a sparse backbone and a head that
# works in full resolution on a quarter of the tiles.
_base_ = './upernet_swin-t_nuclei.py'

load_from = 'work_dirs/upernet_swin-t_nuclei/iter_450.pth'
model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
    # A crop of 128x128 has 32x32 locations of stride 4: 16 tiles.
    decode_head=dict(type='mmdyn.DynamicUPerHead', coarse_stride=16, tile_size=8, tile_ratio=0.25),
    auxiliary_head=None,
)
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(part_lr_mult=dict(pretrained=0.2, predictors=2.0, fast_path=2.0)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=15),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=15, end=180),
]
# First explore, then train what is deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=60, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=180, val_interval=180)
default_hooks = dict(checkpoint=dict(interval=180))
