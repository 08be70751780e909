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
    # A patch of 2 puts the sparse stage at stride 8: 256 locations in a 128x128 scene. Windows of
    # 8 divide every map. The head starts at stride 4, where things are still 5 pixels across.
    backbone=dict(
        embed_dims=32,
        depths=(1, 1, 6, 1),
        num_heads=(1, 2, 4, 8),
        patch_size=2,
        strides=(2, 2, 2, 2),
        window_size=8,
        out_indices=(1, 2, 3),
    ),
    decode_head=dict(
        in_channels=[64, 128, 256],
        in_index=[0, 1, 2],
        num_classes=10,
        # Things cover a tenth of the pixels. (mmseg's loss takes weights only so.)
        loss_decode=dict(avg_non_ignore=False, class_weight=[1.0] * 4 + [3.0] * 6),
    ),
)
