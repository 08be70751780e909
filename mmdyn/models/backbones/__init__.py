from mmdyn.models.backbones.convnext import DynamicConvNeXt
from mmdyn.models.backbones.swin import DynamicSwin
from mmdyn.models.backbones.vit import DynamicViT

__all__ = ['DynamicConvNeXt', 'DynamicSwin', 'DynamicViT']
