# UperNet, a narrow DynamicConvNeXt, on generated scenes: minutes on a CPU, no download.
# Data, heads, recipe and the shape of the one stage are those of upernet_swin_mini.py.
_base_ = './upernet_swin_mini.py'

model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(
        _delete_=True,
        type='mmdyn.DynamicConvNeXt',
        arch=dict(depths=(6,), channels=(128,)),
        stem_patch_size=8,
        out_indices=(0,),
        # As in the hosts' configs: the default would need many more iterations to grow.
        layer_scale_init_value=1.0,
        keep_ratios=(0.7, 0.5, 0.3),
        sparse_stage=0,
        sparse_blocks=(0, 1, 2),
    ),
)
