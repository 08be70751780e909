# Dense twin of upernet_dynconvnext_camvid.py: same data, same recipe, everything is kept.
_base_ = './upernet_dynconvnext_camvid.py'

model = dict(backbone=dict(keep_ratios=(1.0, 1.0, 1.0)))
# What a dense model has not stays as it was made; see upernet_convnext_mini.py.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'predictors': dict(lr_mult=0.0), 'fast_path': dict(lr_mult=0.0)}
    )
)
