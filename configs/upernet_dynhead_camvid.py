# The dense twin's backbone and recipe on CamVid, with a head that works in full resolution on a
# quarter of the map only.
_base_ = './upernet_swin_camvid.py'

model = dict(
    decode_head=dict(
        type='mmdyn.DynamicUPerHead',
        coarse_stride=8,
        # A 256x320 crop has 64x80 locations of stride 4: 80 tiles.
        tile_size=8,
        tile_ratio=0.25,
    ),
)
# First explore, then train what is deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=500, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
