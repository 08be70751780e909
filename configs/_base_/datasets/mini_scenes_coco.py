# The things of MiniScenes in COCO's format: generated on first use, no download
# (mmdyn/datasets/mini_scenes.py). Evaluated at the pictures' original size.
dataset_type = 'mmdyn.MiniScenesInstanceDataset'
data_root = 'data/mini_scenes_coco'
size = 128
scenes = dict(size=size, train=800, val=100)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='Resize', scale=(size, size)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(size, size)),  # mmdet's heads need a scale factor
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='training',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
        **scenes,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='validation',
        test_mode=True,
        pipeline=test_pipeline,
        **scenes,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=f'{data_root}/instances_validation.json',
    metric=['bbox', 'segm'],
)
test_evaluator = val_evaluator
