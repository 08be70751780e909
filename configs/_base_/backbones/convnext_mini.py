# The shape of upernet_swin_mini.py's one stage, as a ConvNeXt.
convnext_mini = dict(
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
)
