# Dense twin of upernet_dynconvnext_camvid.py: same data, same recipe, keep ratio 1.
_base_ = './upernet_dynconvnext_camvid.py'

model = dict(backbone=dict(keep_ratios=(1.0, 1.0, 1.0)))
# Learning rate 0 for the unused new parameters; see upernet_convnext_mini.py.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'predictors': dict(lr_mult=0.0), 'fast_path': dict(lr_mult=0.0)}
    )
)
