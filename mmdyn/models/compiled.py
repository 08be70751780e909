"""torch.compile for the parts of a sparse backbone whose shapes stay put.

Compiling a whole backbone takes many minutes: every block is optimised anew, and decisions break
the graph. Compiled by regions (a block's attention, its MLP, its fast path), what is made for one
block of a stage serves the others, which differ in their weights alone.
"""

from __future__ import annotations

import torch
from torch import nn

RECOMPILE_LIMIT = 128
"""How many shapes a region is compiled for before it falls back to eager execution."""


def compile_regions(model: nn.Module, **kwargs: object) -> nn.Module:
    """Compile the regions of every sparse block in a model, in place.

    A region is compiled when it first meets a shape: the number of kept locations, the
    size of a map. The gathering of locations in between, and everything that is not a
    sparse backbone of ours, stays as it is, and so does the state dict. A compiled model
    is for running: it can't be copied or pickled as a whole. Torch's limit of shapes per region,
    one for the whole process, is raised to :data:`RECOMPILE_LIMIT` if it is lower.

    Args:
        model: a sparse backbone, or any model around one.
        **kwargs: of ``torch.compile``; ``dynamic=False`` unless given.

    Returns:
        ``model``.

    Raises:
        ValueError: if there is nothing in it to compile.
    """
    regions = [
        (module, name)
        for module in model.modules()
        for name in getattr(module, 'compiled_regions', ())
    ]
    if not regions:
        raise ValueError(
            f'{type(model).__name__} has no regions to compile: it holds no sparse backbone such '
            'as mmdyn.DynamicSwin; use torch.compile for a dense one'
        )
    # Older versions have another name for the limit, with the same meaning.
    config = torch._dynamo.config
    limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    setattr(config, limit, max(getattr(config, limit), RECOMPILE_LIMIT))
    for module, name in regions:
        # On the instance: its class, and other models of it, stay as they are.
        setattr(module, name, torch.compile(getattr(module, name), **{'dynamic': False, **kwargs}))
    return model
