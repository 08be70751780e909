# DynamicViT-LV-M, ImageNet-1k at 224x224, 30 epochs from the dense LV-ViT (load_from).
_base_ = './dynlvvit-s_imagenet.py'

model = dict(
    backbone=dict(
        embed_dims=512,
        num_heads=8,
        num_layers=20,
        out_indices=(19,),
        sparse_blocks=(5, 10, 15),
    ),
)
