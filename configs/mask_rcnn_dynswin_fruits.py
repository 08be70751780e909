# Mask R-CNN with a narrow DynamicSwin on 13 photos: a check that it learns from real pictures.
# For another folder than data/fruits_nuts: tools/train.py --data-root FOLDER.
_base_ = [
    './_base_/models/mask_rcnn_swin_small_scale.py',
    './_base_/datasets/fruits_nuts.py',
    './_base_/schedules/small_scale.py',
    './_base_/det_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    type='mmdyn.DynamicMaskRCNN',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
    roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)),
)
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
