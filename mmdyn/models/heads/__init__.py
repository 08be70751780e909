"""Decode heads that spend their time where it matters; there if mmseg is installed."""

from mmdyn.compat import has_host

if has_host('mmseg'):
    from mmdyn.models.heads.uper_head import DynamicUPerHead  # noqa: F401
