# What shape is it? A narrow LV-ViT, dense, on generated pictures: about a minute on a CPU.
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
default_scope = 'mmdyn'
size = 48
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='mmdyn.TimmTransform',
        input_size=size,
        is_training=True,
        scale=(0.7, 1.0),
        color_jitter=None,
        interpolation='bicubic',
    ),
    dict(type='mmdyn.PackClassInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdyn.TimmTransform', input_size=size, crop_pct=1.0, interpolation='bicubic'),
    dict(type='mmdyn.PackClassInputs'),
]
data_root = 'data/mini_things'
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmdyn.MiniThingsDataset', data_root=data_root, split='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=40,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmdyn.MiniThingsDataset', data_root=data_root, split='val', pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmdyn.Accuracy', topk=(1, 2))
test_evaluator = val_evaluator
model = dict(
    type='mmdyn.DynamicClassifier',
    num_classes=6,
    aux_head=True,
    backbone=dict(
        type='mmdyn.DynamicViT',
        img_size=size,
        patch_size=6,
        embed_dims=64,
        num_layers=8,
        num_heads=2,
        mlp_ratio=3,
        qkv_bias=False,
        norm_cfg=dict(type='LN', eps=1e-5),
        stem_channels=16,
        skip_lam=2.0,
        out_indices=(7,),
        final_norm=True,
        keep_ratios=(1.0, 1.0, 1.0),  # dense
    ),
    data_preprocessor=dict(
        type='mmdyn.ClassifierPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=40, end=400),
]
train_cfg = dict(by_epoch=False, max_iters=400, val_interval=400)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
log_processor = dict(window_size=20, by_epoch=False)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
default_hooks = dict(
    checkpoint=dict(type='mmdyn.CheckpointHook', interval=400, by_epoch=False),
    logger=dict(type='LoggerHook', interval=50),
)
