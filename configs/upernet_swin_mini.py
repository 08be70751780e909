# Dense twin of upernet_dynswin_mini.py: same data, same recipe, stock backbone.
_base_ = [
    './_base_/models/upernet_swin_small_scale.py',
    './_base_/datasets/mini_scenes.py',
    './_base_/schedules/small_scale.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    # One stage at stride 8, 256 locations in a 128x128 scene. Without stages of higher resolution
    # the task depends on this stage's MLPs, so it matters which locations they run on. (In a
    # pyramid they can all be skipped at no loss.)
    backbone=dict(
        embed_dims=128,
        depths=(6,),
        num_heads=(4,),
        patch_size=8,
        strides=(8,),
        window_size=8,
        out_indices=(0,),
    ),
    decode_head=dict(
        in_channels=[128],
        in_index=[0],
        num_classes=10,
        loss_decode=dict(
            _delete_=True,
            type='mmdyn.WeightedCrossEntropyLoss',
            class_weight=[1.0] * 4 + [3.0] * 6,  # things cover an eighth of the pixels
        ),
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=40, end=450),
]
train_cfg = dict(max_iters=450, val_interval=450)
default_hooks = dict(checkpoint=dict(interval=450))
