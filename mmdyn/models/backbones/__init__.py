from mmdyn.models.backbones.convnext import DynamicConvNeXt
from mmdyn.models.backbones.swin import DynamicSwin

__all__ = ['DynamicConvNeXt', 'DynamicSwin']
