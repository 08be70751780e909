"""Backbones, their host adapters, and what configs name beside them."""

from mmdyn.models import adapters, losses, policies
from mmdyn.models.backbones import DynamicConvNeXt, DynamicSwin

__all__ = ['DynamicConvNeXt', 'DynamicSwin', 'adapters', 'losses', 'policies']
