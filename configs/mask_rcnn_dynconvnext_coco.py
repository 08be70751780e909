# Mask R-CNN, DynamicConvNeXt-T, COCO, 3x, multi-scale, AMP: mmdet's published recipe.
_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    type='mmdyn.DynamicMaskRCNN',
    backbone=dict(type='mmdyn.DynamicConvNeXt', keep_ratios=(0.7, 0.5, 0.3)),
)
