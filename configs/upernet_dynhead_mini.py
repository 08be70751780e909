# The dense twin's backbone and recipe, with a head that works in full resolution on a quarter of the
# map only. Scenes of 128 pixels are too small to save much: see docs/dynamic_head.md.
_base_ = './upernet_swin_mini_pyramid.py'

model = dict(
    decode_head=dict(
        type='mmdyn.DynamicUPerHead',
        coarse_stride=8,
        # A 128x128 scene has 32x32 locations of stride 4: 16 tiles.
        tile_size=8,
        tile_ratio=0.25,
    ),
)
# First explore, then train what is deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=150, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
# The norm that is clipped is that of all gradients together: a predictor's peaks would slow the dense
# head down (docs/dynamic_head.md).
optim_wrapper = dict(clip_grad=None)
