# Dense UperNet on nuclei, from scratch on a CPU. Data elsewhere than in data/nuclei:
# tools/train.py --data-root FOLDER.
_base_ = [
    './_base_/models/upernet_swin_deep_stage3.py',
    './_base_/datasets/nuclei.py',
    './_base_/schedules/small_scale.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
# The border is one pixel wide.
loss_decode = dict(
    _delete_=True, type='mmdyn.WeightedCrossEntropyLoss', class_weight=[1.0, 1.0, 3.0]
)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    decode_head=dict(num_classes=3, loss_decode=loss_decode),
    auxiliary_head=dict(num_classes=3, loss_decode=dict(loss_weight=0.4, **loss_decode)),
)
train_dataloader = dict(batch_size=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=50, end=6000),
]
train_cfg = dict(max_iters=6000, val_interval=6000)
default_hooks = dict(checkpoint=dict(interval=1000))
