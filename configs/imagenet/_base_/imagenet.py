# ImageNet-1k at 224x224, one folder per class, with the augmentation of DeiT, Swin and ConvNeXt.
# Batches are for 8 GPUs with 128 pictures each.
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
default_scope = 'mmdyn'
# As torchvision reads: no EXIF rotation.
load = dict(
    type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'
)
train_pipeline = [
    load,
    dict(
        type='mmdyn.TimmTransform',
        input_size=224,
        is_training=True,
        auto_augment='rand-m9-mstd0.5-inc1',
        color_jitter=0.4,
        interpolation='bicubic',
    ),
    dict(type='mmdyn.PackClassInputs'),
]
test_pipeline = [
    load,
    dict(type='mmdyn.TimmTransform', input_size=224, crop_pct=0.875, interpolation='bicubic'),
    dict(type='mmdyn.PackClassInputs'),
]
data_root = 'data/imagenet'
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmdyn.ImageNetDataset',
        data_root=data_root,
        data_prefix=dict(img_path='train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmdyn.ImageNetDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmdyn.Accuracy')
test_evaluator = val_evaluator
model = dict(
    type='mmdyn.DynamicClassifier',
    num_classes=1000,
    label_smoothing=0.1,
    data_preprocessor=dict(
        type='mmdyn.ClassifierPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        mixing=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
        erasing=0.25,
    ),
)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
default_hooks = dict(
    checkpoint=dict(type='mmdyn.CheckpointHook', interval=1, by_epoch=True, max_keep_ckpts=3),
    logger=dict(type='LoggerHook', interval=100),
)
# Another random state on each GPU, for mixing and erasing.
randomness = dict(seed=None, diff_rank_seed=True)
