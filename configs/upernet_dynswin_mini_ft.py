# Dense to sparse: starts from a trained upernet_swin_mini (load_from), a shorter schedule.
_base_ = './upernet_dynswin_mini.py'

load_from = 'work_dirs/upernet_swin_mini/iter_300.pth'
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=20, end=200),
]
train_cfg = dict(max_iters=200, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
