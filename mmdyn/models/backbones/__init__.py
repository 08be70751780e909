from mmdyn.models.backbones.swin import DynamicSwin

__all__ = ['DynamicSwin']
