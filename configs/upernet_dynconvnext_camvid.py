# UperNet, a narrow DynamicConvNeXt, on CamVid from scratch; data, heads and recipe as for Swin.
_base_ = './upernet_swin_camvid.py'

model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(
        _delete_=True,
        type='mmdyn.DynamicConvNeXt',
        arch=dict(depths=(2, 2, 6, 2), channels=(48, 96, 192, 384)),
        # As in the hosts' configs; the default starts too small for few iterations.
        layer_scale_init_value=1.0,
        keep_ratios=(0.7, 0.5, 0.3),
    ),
)
