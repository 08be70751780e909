# A ConvNeXt shaped like the stage of upernet_swin_mini.py.
convnext_mini = dict(
    _delete_=True,
    type='mmdyn.DynamicConvNeXt',
    arch=dict(depths=(6,), channels=(128,)),
    stem_patch_size=8,
    out_indices=(0,),
    # As in the hosts' configs; the default starts too small for few iterations.
    layer_scale_init_value=1.0,
    keep_ratios=(0.7, 0.5, 0.3),
    sparse_stage=0,
    sparse_blocks=(0, 1, 2),
)
