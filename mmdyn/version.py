"""The one place that states mmdyn's version."""

__version__ = '0.1.0'
