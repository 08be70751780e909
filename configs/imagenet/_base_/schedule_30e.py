# The original's fine-tuning from dense weights (load_from) in 30 epochs: AdamW at 1e-3 for batches
# of 1024, 5 epochs of warm-up, cosine decay, averaged weights. Pretrained weights are frozen for
# five epochs, and learn at a part of the rate, which each config sets; class token and positions
# stay frozen.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'pos_embed': dict(lr_mult=0.0),
            'cls_token': dict(lr_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, begin=5, end=30, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = [
    dict(type='mmdyn.HoldPretrainedHook', end=6255),
    dict(type='EMAHook', momentum=1e-4, update_buffers=True),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=5)
val_cfg = dict()
test_cfg = dict()
