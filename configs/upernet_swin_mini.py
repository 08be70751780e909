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
    # A patch of 2 puts the sparse stage at stride 8: 256 locations in a 128x128 scene.
    backbone=dict(patch_size=2, strides=(2, 2, 2, 2)),
    decode_head=dict(num_classes=10),
)
