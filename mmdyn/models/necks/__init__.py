"""Necks: a pyramid of a plain backbone's map, and one that is sparse in its finest level."""

from mmdyn.compat import has_host
from mmdyn.models.necks.simple_pyramid import SimpleFeaturePyramid

if has_host('mmdet'):
    from mmdyn.models.necks.dynamic_fpn import DynamicFPN  # noqa: F401

__all__ = ['SimpleFeaturePyramid']
