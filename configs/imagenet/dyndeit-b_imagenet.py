# DynamicViT-DeiT-B, ImageNet-1k at 224x224, 30 epochs from the dense DeiT (load_from).
_base_ = './dyndeit-s_imagenet.py'

model = dict(
    backbone=dict(embed_dims=768, num_heads=12, drop_path_rate=0.2),
    keep_ratio_loss=dict(loss_weight=5.0),
)
