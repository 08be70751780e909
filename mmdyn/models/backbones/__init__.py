from mmdyn.models.backbones.swin import DynamicSwin
from mmdyn.models.backbones.vit import DynamicViT

__all__ = ['DynamicSwin', 'DynamicViT']
