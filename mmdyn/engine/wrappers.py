"""Unwraps models."""

from typing import Any

from torch import nn


def unwrapped(model: Any) -> Any:
    """Return the host's model inside any wrappers; objects that are no modules are returned as is.

    Wrappers are recognised by attribute: ``module`` in those of torch and mmengine for distributed
    training, averaged models (EMA) and test-time augmentation; ``_orig_mod`` in results of
    ``torch.compile``. The hosts' models have neither.
    """
    while True:
        inner = getattr(model, 'module', None)
        if not isinstance(inner, nn.Module):
            inner = getattr(model, '_orig_mod', None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
