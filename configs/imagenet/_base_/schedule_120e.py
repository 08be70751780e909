# The original's fine-tuning from dense weights (load_from) in 120 epochs: as in 30, but AdamW at 4e-3
# for batches of 4096 (1024 in four steps), and 20 epochs of warm-up.
_base_ = './schedule_30e.py'

optim_wrapper = dict(
    accumulative_counts=4,
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(custom_keys={'gamma': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-3, begin=20, end=120, convert_to_iter_based=True
    ),
]
auto_scale_lr = dict(base_batch_size=4096)
custom_hooks = [
    dict(type='mmdyn.HoldPretrainedHook', end=6255),
    dict(type='EMAHook', momentum=2.5e-5, update_buffers=True),
]
train_cfg = dict(max_epochs=120)
