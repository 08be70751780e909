# UperNet, DynamicViT with DeiT-S, ADE20K at 512x512: mmseg's published recipe, sparse backbone.
_base_ = 'mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicViT', keep_ratios=(0.7, 0.49, 0.343)),
    # Loss weights of the original DeiT-S; the second one needs a teacher.
    keep_ratio_loss=dict(type='mmdyn.KeepRatioLoss', loss_weight=2.0),
    feature_distill_loss=dict(type='mmdyn.FeatureDistillLoss', kept_only=True, normalize=True),
)
