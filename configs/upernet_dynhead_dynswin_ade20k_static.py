# UperNet, DynamicSwin-T, ADE20K at 512x512: sparse backbone and a head at stride 8 without tiles,
# the best at its cost in small-scale experiments (docs/dynamic_head.md).
_base_ = './upernet_dynhead_dynswin_ade20k.py'

model = dict(decode_head=dict(coarse_stride=8, tile_ratio=0.0))
