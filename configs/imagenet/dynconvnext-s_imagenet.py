# DynamicConvNeXt-S (the paper's DynamicCNN), ImageNet-1k at 224x224, 120 epochs from the dense
# ConvNeXt-S (load_from).
_base_ = './dynconvnext-t_imagenet.py'

model = dict(backbone=dict(arch='small'))
