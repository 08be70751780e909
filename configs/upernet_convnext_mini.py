# Dense twin of upernet_dynconvnext_mini.py: same data, same recipe, keep ratio 1.
_base_ = './upernet_dynconvnext_mini.py'

model = dict(backbone=dict(keep_ratios=(1.0, 1.0, 1.0)))
# Learning rate 0 keeps the unused new parameters at their initial values, so that a sparse model starts with
# fresh predictors.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'predictors': dict(lr_mult=0.0), 'fast_path': dict(lr_mult=0.0)}
    )
)
