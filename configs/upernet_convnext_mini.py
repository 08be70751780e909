# Dense twin of upernet_dynconvnext_mini.py: same data, same recipe, everything is kept.
_base_ = './upernet_dynconvnext_mini.py'

model = dict(backbone=dict(keep_ratios=(1.0, 1.0, 1.0)))
# What a dense model has not stays as it was made: it takes no part in the training, and a sparse
# model that starts from this one starts with fresh predictors.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'predictors': dict(lr_mult=0.0), 'fast_path': dict(lr_mult=0.0)}
    )
)
