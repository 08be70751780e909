# Adds a head to a trained upernet_swin_nuclei (load_from) that uses full resolution on a quarter of
# the map only. The loaded weights are frozen; only new parameters are trained.
_base_ = './upernet_swin_nuclei.py'

load_from = 'work_dirs/upernet_swin_nuclei/iter_6000.pth'
model = dict(
    backbone=dict(frozen_stages=4),
    decode_head=dict(
        type='mmdyn.DynamicUPerHead',
        coarse_stride=16,
        # A picture of 512x512 has 128x128 locations of stride 4: 256 tiles.
        tile_size=8,
        tile_ratio=0.25,
        freeze_dense=True,
    ),
    # Useless with a frozen backbone.
    auxiliary_head=None,
)
# For variants that also train the dense layers, slowly.
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    paramwise_cfg=dict(part_lr_mult=dict(pretrained=0.1)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=20, end=300),
]
# Gumbel sampling first, then top-k, as deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=100, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=300, val_interval=300)
default_hooks = dict(checkpoint=dict(interval=300))
