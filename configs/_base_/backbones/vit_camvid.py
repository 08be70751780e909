# A plain ViT as narrow as DeiT-Ti, at the crop size: arguments for the host's and ours.
arguments = dict(
    _delete_=True,
    img_size=(256, 320),
    patch_size=16,
    embed_dims=192,
    num_layers=12,
    num_heads=3,
    out_indices=(2, 5, 8, 11),
    # As in timm, which DynamicViT follows.
    norm_cfg=dict(type='LN', eps=1e-6),
    patch_bias=True,
    final_norm=True,
)
vit_camvid = dict(type='VisionTransformer', **arguments)
dynvit_camvid = dict(type='mmdyn.DynamicViT', keep_ratios=(0.7, 0.49, 0.343), **arguments)
del arguments
