# UperNet, DynamicConvNeXt-T, ADE20K at 512x512: mmseg's published recipe, sparse backbone.
_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicConvNeXt', keep_ratios=(0.7, 0.5, 0.3)),
)
