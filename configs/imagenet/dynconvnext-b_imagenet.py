# DynamicConvNeXt-B (the paper's DynamicCNN), ImageNet-1k at 224x224, 120 epochs from the dense
# ConvNeXt-B (load_from).
_base_ = './dynconvnext-t_imagenet.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.5))
