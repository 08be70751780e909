# Dense UperNet on CamVid at half the resolution, from scratch on a CPU.
_base_ = [
    './_base_/models/upernet_swin_deep_stage3.py',
    './_base_/datasets/camvid_half.py',
    './_base_/schedules/small_scale.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
# Rare classes weigh more: poles, signs, fences, pedestrians, bicyclists.
loss_decode = dict(
    _delete_=True,
    type='mmdyn.WeightedCrossEntropyLoss',
    class_weight=[1.0, 1.0, 3.0, 1.0, 1.5, 1.0, 3.0, 2.0, 1.5, 3.0, 3.0],
)
model = dict(
    data_preprocessor=dict(size=(128, 192)),
    decode_head=dict(num_classes=11, loss_decode=loss_decode),
    auxiliary_head=dict(num_classes=11, loss_decode=dict(loss_weight=0.4, **loss_decode)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=50, end=3000),
]
train_cfg = dict(max_iters=3000, val_interval=3000)
default_hooks = dict(checkpoint=dict(interval=1000))
