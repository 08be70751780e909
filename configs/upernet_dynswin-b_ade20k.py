# UperNet, DynamicSwin-B, ADE20K at 512x512: mmseg's published recipe, sparse backbone.
_base_ = 'mmseg::swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
)
