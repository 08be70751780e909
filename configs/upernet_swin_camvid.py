# Dense twin of upernet_dynswin_camvid.py: same data, same recipe, stock backbone.
_base_ = [
    './_base_/models/upernet_swin_small_scale.py',
    './_base_/datasets/camvid.py',
    './_base_/schedules/small_scale.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(size=(256, 320)),
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=50, end=1500),
]
train_cfg = dict(max_iters=1500, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
