"""Backbones, their host adapters, and what configs name beside them."""

from mmdyn.models import adapters, losses, necks, policies
from mmdyn.models.backbones import DynamicSwin, DynamicViT

__all__ = ['DynamicSwin', 'DynamicViT', 'adapters', 'losses', 'necks', 'policies']
