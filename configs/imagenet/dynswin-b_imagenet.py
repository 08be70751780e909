# DynamicSwin-B, ImageNet-1k at 224x224, 120 epochs from the dense Swin-B (load_from).
_base_ = './dynswin-s_imagenet.py'

model = dict(backbone=dict(embed_dims=128, num_heads=(4, 8, 16, 32), drop_path_rate=0.5))
