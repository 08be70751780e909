# Dense Mask R-CNN on nuclei, from scratch on a CPU. Data elsewhere than in data/nuclei:
# tools/train.py --data-root FOLDER.
_base_ = [
    './_base_/models/mask_rcnn_swin_small_scale.py',
    './_base_/datasets/nuclei_coco.py',
    './_base_/schedules/small_scale.py',
    './_base_/det_runtime.py',
]
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
# A third stage with most of the blocks, as in larger models: its MLPs are what can be saved.
model = dict(
    backbone=dict(embed_dims=32, depths=(1, 1, 12, 1), num_heads=(1, 2, 4, 8), window_size=8),
    neck=dict(in_channels=[32, 64, 128, 256]),
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
    # Up to hundreds of nuclei in a picture.
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=400), rcnn=dict(max_per_img=400)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=50, end=1500),
]
train_cfg = dict(max_iters=1500, val_interval=1500)
default_hooks = dict(checkpoint=dict(interval=500), visualization=dict(type='DetVisualizationHook'))
