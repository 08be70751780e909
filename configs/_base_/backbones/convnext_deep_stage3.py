# A narrow ConvNeXt shaped like the Swin of _base_/models/upernet_swin_deep_stage3.py.
convnext_deep_stage3 = dict(
    _delete_=True,
    type='mmdyn.DynamicConvNeXt',
    arch=dict(depths=(1, 1, 12, 1), channels=(32, 64, 128, 256)),
    out_indices=(0, 1, 2, 3),
    drop_path_rate=0.0,
    # As in the hosts' configs; the default starts too small for few iterations.
    layer_scale_init_value=1.0,
    keep_ratios=(1.0, 1.0, 1.0),
)
