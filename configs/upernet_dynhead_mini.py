# The dense backbone with a head that works in full resolution on an eighth of the map only.
_base_ = './upernet_swin_mini_pyramid.py'

model = dict(
    decode_head=dict(
        type='mmdyn.DynamicUPerHead',
        # A 128x128 scene has 32x32 locations of stride 4: 64 tiles.
        tile_size=4,
        tile_ratio=0.125,
    ),
)
# First explore, then train what is deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=150, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
