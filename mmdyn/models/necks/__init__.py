"""Necks: a pyramid from a plain backbone's map, and an FPN with a sparse finest level."""

from mmdyn.compat import has_host
from mmdyn.models.necks.simple_pyramid import SimpleFeaturePyramid

if has_host('mmdet'):
    from mmdyn.models.necks.dynamic_fpn import DynamicFPN  # noqa: F401

__all__ = ['SimpleFeaturePyramid']
