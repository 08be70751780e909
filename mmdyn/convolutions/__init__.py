"""Convolutions rewritten: the same result for less work, or a cheap start that stands in for one.

Of these the mechanism of :mod:`mmdyn.sparsity` knows nothing; like it they import torch only.
"""
