# Mask R-CNN, DynamicSwin-T, COCO, 1x: sparse backbone and sparse finest level of the pyramid.
_base_ = './mask_rcnn_dynswin_coco.py'

model = dict(
    neck=dict(type='mmdyn.DynamicFPN', tile_size=16, tile_ratio=0.5),
    rpn_head=dict(type='mmdyn.DynamicRPNHead'),
)
