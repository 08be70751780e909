# DynamicViT-DeiT-256, ImageNet-1k at 224x224, 30 epochs from a dense DeiT of that width (load_from).
_base_ = './dyndeit-s_imagenet.py'

model = dict(backbone=dict(embed_dims=256, num_heads=4))
