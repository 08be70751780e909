# Dense twin of upernet_dynhead_mini.py: a Swin with maps of stride 4, 8 and 16 and mmseg's UPerHead,
# on scenes of 256 pixels.
_base_ = [
    './_base_/models/upernet_swin_small_scale.py',
    './_base_/datasets/mini_scenes_256.py',
    './_base_/schedules/small_scale.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    backbone=dict(
        embed_dims=48,
        depths=(1, 4, 1),
        num_heads=(2, 4, 8),
        patch_size=4,
        strides=(4, 2, 2),
        window_size=8,
        out_indices=(0, 1, 2),
    ),
    decode_head=dict(
        in_channels=[48, 96, 192],
        in_index=[0, 1, 2],
        num_classes=10,
        loss_decode=dict(
            _delete_=True,
            type='mmdyn.WeightedCrossEntropyLoss',
            class_weight=[1.0] * 4 + [3.0] * 6,  # things cover an eighth of the pixels
        ),
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=40, end=600),
]
train_cfg = dict(max_iters=600, val_interval=600)
default_hooks = dict(checkpoint=dict(interval=600))
