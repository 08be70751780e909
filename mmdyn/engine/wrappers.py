"""What a model is wrapped in, taken off."""

from typing import Any

from torch import nn


def unwrapped(model: Any) -> Any:
    """The host's model inside of whatever wraps it, at any depth; what is no module stays.

    By the attribute that holds it, not by class: ``module`` in torch's and mmengine's wrappers
    for several processes, in averaged models (EMA) and in models with
    test-time augmentation; ``_orig_mod`` in what ``torch.compile`` returns. The hosts' own
    models have neither.
    """
    while True:
        inner = getattr(model, 'module', None)
        if not isinstance(inner, nn.Module):
            inner = getattr(model, '_orig_mod', None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
