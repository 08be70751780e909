# mask_rcnn_dynswin_mini.py with a neck and RPN that are sparse in the finest level.
_base_ = './mask_rcnn_dynswin_mini.py'

model = dict(
    # A 128x128 scene has 32x32 locations of stride 4: 64 tiles.
    neck=dict(type='mmdyn.DynamicFPN', tile_size=4, tile_ratio=0.5),
    rpn_head=dict(type='mmdyn.DynamicRPNHead'),
)
