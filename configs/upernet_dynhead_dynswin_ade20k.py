# UperNet, DynamicSwin-T, ADE20K at 512x512: sparse backbone and a head that uses full resolution on
# an eighth of the map only.
_base_ = './upernet_dynswin_ade20k.py'

model = dict(decode_head=dict(type='mmdyn.DynamicUPerHead', coarse_stride=16, tile_ratio=0.125))
