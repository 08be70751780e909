"""Backbones, heads, necks, losses and host adapters, registered for configs."""

from mmdyn.models import adapters, heads, losses, necks, policies
from mmdyn.models.backbones import DynamicConvNeXt, DynamicSwin, DynamicViT

__all__ = [
    'DynamicConvNeXt',
    'DynamicSwin',
    'DynamicViT',
    'adapters',
    'heads',
    'losses',
    'necks',
    'policies',
]
