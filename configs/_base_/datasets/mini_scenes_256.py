# MiniScenes at 256 pixels: the same scenes as mini_scenes.py, large enough for tiles and coarse
# strides.
_base_ = './mini_scenes.py'
data_root = 'data/mini_scenes_256'
size = 256
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(size, size), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(size, size), cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(data_root=data_root, size=size, pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(data_root=data_root, size=size))
test_dataloader = val_dataloader
