# The dense twin's backbone and recipe, with a head that works in full resolution on half of the map:
# things of 16 pixels in scenes of 128 leave little that is coarse.
_base_ = './upernet_swin_mini_pyramid.py'

model = dict(
    decode_head=dict(
        type='mmdyn.DynamicUPerHead',
        coarse_stride=8,
        # A 128x128 scene has 32x32 locations of stride 4: 64 tiles.
        tile_size=4,
        tile_ratio=0.5,
    ),
)
# First explore, then train what is deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=150, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
