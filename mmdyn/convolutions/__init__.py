"""Faster equivalents of convolutions, and cheap ones initialised from them.

Imports torch only, like :mod:`mmdyn.sparsity`, which does not depend on this package.
"""
