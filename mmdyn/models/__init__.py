"""Backbones, their host adapters, and what configs name beside them."""

from mmdyn.models import adapters, losses, policies
from mmdyn.models.backbones import DynamicSwin

__all__ = ['DynamicSwin', 'adapters', 'losses', 'policies']
