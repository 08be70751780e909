# Dense UperNet ConvNeXt on nuclei: DynamicConvNeXt with everything kept.
_base_ = ['./upernet_swin_nuclei.py', './_base_/backbones/convnext_deep_stage3.py']

model = dict(type='mmdyn.DynamicEncoderDecoder', backbone={{_base_.convnext_deep_stage3}})
# Learning rate 0 for the unused new parameters.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'predictors': dict(lr_mult=0.0), 'fast_path': dict(lr_mult=0.0)}
    )
)
