"""Backbones, their host adapters, and what configs name beside them."""

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
