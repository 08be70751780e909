# UperNet, DynamicSwin-T, ADE20K at 512x512: sparse backbone, and a head that works at stride 8
# everywhere, without tiles: at small scale the best of what was tried at its cost
# (docs/dynamic_head.md).
_base_ = './upernet_dynhead_dynswin_ade20k.py'

model = dict(decode_head=dict(coarse_stride=8, tile_ratio=0.0))
