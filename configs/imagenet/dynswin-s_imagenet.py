# DynamicSwin-S, ImageNet-1k at 224x224, 120 epochs from the dense Swin-S (load_from).
_base_ = './dynswin-t_imagenet.py'

model = dict(backbone=dict(depths=(2, 2, 18, 2)))
