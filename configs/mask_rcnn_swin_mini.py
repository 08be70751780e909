# Dense twin of mask_rcnn_dynswin_mini.py: same data, same recipe, stock backbone.
_base_ = [
    './_base_/models/mask_rcnn_swin_small_scale.py',
    './_base_/datasets/mini_scenes_coco.py',
    './_base_/schedules/small_scale.py',
    './_base_/det_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(roi_head=dict(bbox_head=dict(num_classes=6), mask_head=dict(num_classes=6)))
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
