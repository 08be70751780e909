"""Sparse heads, for the hosts that are installed."""

from mmdyn.compat import has_host

if has_host('mmseg'):
    from mmdyn.models.heads.uper_head import DynamicUPerHead  # noqa: F401

if has_host('mmdet'):
    from mmdyn.models.heads.rpn_head import DynamicRPNHead  # noqa: F401
