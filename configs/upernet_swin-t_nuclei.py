# mmseg's UperNet Swin-T, dense, on nuclei from scratch: small crops, so that a CPU trains it in
# about an hour. Data elsewhere than in data/nuclei: tools/train.py --data-root FOLDER.
_base_ = [
    './_base_/models/upernet_swin_small_scale.py',
    './_base_/datasets/nuclei.py',
    './_base_/schedules/small_scale.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(embed_dims=96, num_heads=(3, 6, 12, 24)),
    decode_head=dict(in_channels=[96, 192, 384, 768], channels=512, num_classes=3),
    auxiliary_head=dict(in_channels=384, channels=256, num_classes=3),
)
optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=30, end=450),
]
train_cfg = dict(max_iters=450, val_interval=450)
default_hooks = dict(checkpoint=dict(interval=450))
