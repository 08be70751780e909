# A plain ViT shaped like the stage of upernet_swin_mini.py: arguments for the host's and ours.
arguments = dict(
    _delete_=True,
    img_size=(128, 128),
    patch_size=8,
    embed_dims=128,
    num_layers=6,
    num_heads=4,
    out_indices=(5,),
    # As in timm, which DynamicViT follows.
    norm_cfg=dict(type='LN', eps=1e-6),
    patch_bias=True,
    final_norm=True,
)
vit_mini = dict(type='VisionTransformer', **arguments)
dynvit_mini = dict(
    type='mmdyn.DynamicViT',
    keep_ratios=(0.7, 0.49, 0.343),
    sparse_blocks=(1, 2, 3),
    **arguments,
)
del arguments
