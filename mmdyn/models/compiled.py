"""torch.compile for sparse models: whole backbones and heads, or the parts of their blocks.

:func:`compile_model` makes one graph of a backbone, decisions and gathering included: fewest
launches, and what CUDA graphs need. :func:`compile_regions` compiles a block's attention, MLP and
fast path alone; what is made for one block of a stage serves the others, which differ in their
weights only: that spares minutes where a C++ compiler builds the code, on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.logging import print_log
from packaging.version import Version
from torch import Tensor, nn

from mmdyn.models.backbones.base import Batch
from mmdyn.sparsity import Decision, Policy, SparseOutput, TopKPolicy
from mmdyn.sparsity.routing import Execution

MAX_SIZES = 8
"""How many sizes of batch :func:`compile_model` compiles a part for; others run eagerly."""

RECOMPILE_LIMIT = 128
"""How many graphs torch makes of a function before it runs it eagerly."""


def compile_model(model: nn.Module, **kwargs: Any) -> nn.Module:
    """Compile every sparse backbone and every ``DynamicUPerHead`` as one graph each, in place.

    The graph is for evaluation by top-k in gathered execution, of batches without padding; anything
    else, and other heads and necks, run as before. It is made when a size of batch is first met at
    the ratios that are set, for the first :data:`MAX_SIZES` of them; others run eagerly, which is
    logged once. The state dict stays as it is; a compiled model can't be copied or pickled as a
    whole. Torch's limit of graphs per function, one for the whole process, is raised to
    :data:`RECOMPILE_LIMIT` if it is lower.

    Args:
        model: a sparse backbone or head, or any model around some.
        **kwargs: of ``torch.compile``; unless given, ``dynamic=False`` and, on a CUDA device,
            ``mode='reduce-overhead'``, which is CUDA graphs.

    Returns:
        ``model``.

    Raises:
        ImportError: if torch is older than 2.10, which breaks the graph.
        ValueError: if there is nothing in it to compile.
    """
    if Version(torch.__version__).release < (2, 10):
        raise ImportError(
            f'compile_model needs torch 2.10 or later, this is {torch.__version__}: use '
            'mmdyn.models.compiled.compile_regions'
        )
    parts = [module for module in model.modules() if hasattr(module, 'compiled_whole')]
    if not parts:
        raise ValueError(
            f'{type(model).__name__} has nothing to compile: it holds no sparse backbone such as '
            'mmdyn.DynamicSwin; use torch.compile for a dense one'
        )
    _raise_limit()
    for part in parts:
        # On the instance: its class, and other models of it, stay as they are.
        setattr(part, part.compiled_whole, _Whole(part, kwargs))
    return model


class _Whole:
    """A part's method: the compiled graph in unpadded top-k evaluation, else the eager one."""

    def __init__(self, part: Any, kwargs: dict[str, Any]) -> None:
        self.part, self.kwargs = part, kwargs
        # Of the class: the instance may have been compiled before.
        self.eager = getattr(type(part), part.compiled_whole).__get__(part)
        self.compiled: Callable | None = None
        self.sizes: set[tuple] = set()
        self.said = False

    def compile(self, on_cuda: bool) -> Callable:
        """Compile the method for where its inputs are."""
        settings = {'dynamic': False, **self.kwargs}
        if on_cuda and not {'mode', 'options', 'backend'} & settings.keys():
            settings['mode'] = 'reduce-overhead'
        return torch.compile(self.eager, **settings)

    def __call__(self, inputs: Any, policy: Policy, execution: Execution, *shapes: Any) -> tuple:
        if isinstance(inputs, Batch):
            maps, padded = (inputs.images,), inputs.shapes is not None
        else:
            maps, padded = inputs, shapes != (None,)
        usual = type(policy) is TopKPolicy and execution == 'gathered' and not self.part.training
        if padded or not usual or not self.has_room(maps):
            return self.eager(inputs, policy, execution, *shapes)
        if self.compiled is None:
            self.compiled = self.compile(maps[0].is_cuda)
        made = self.compiled(inputs, policy, execution, *shapes)
        return own_memory(made) if maps[0].is_cuda else made

    def has_room(self, maps: Sequence[Tensor]) -> bool:
        """Whether these sizes were compiled for, or may be."""
        device = maps[0].device
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast_of(device)
        ratios = getattr(self.part, 'keep_ratios', None) or self.part.tile_ratio
        size = (*((x.shape, x.stride(), x.dtype) for x in maps), device, modes, ratios)
        if len(self.sizes) < MAX_SIZES:
            self.sizes.add(size)
        if size in self.sizes:
            return True
        if not self.said:
            self.said = True
            print_log(
                f'{type(self.part).__name__} is compiled for {MAX_SIZES} sizes of batch or ratios '
                f'and met another, {tuple(maps[0].shape)}: it runs eagerly at further ones; bring '
                'images to fewer sizes',
                logger='current',
                level=logging.WARNING,
            )
        return False


def autocast_of(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on a device, None where it is off."""
    kind = device.type
    if kind not in ('cpu', 'cuda'):
        return None
    on = torch.is_autocast_enabled() if kind == 'cuda' else torch.is_autocast_cpu_enabled()
    of = torch.get_autocast_gpu_dtype if kind == 'cuda' else torch.get_autocast_cpu_dtype
    return of() if on else None


def own_memory(made: Any) -> Any:
    """A copy outside of the memory of a CUDA graph, which its next run writes to."""
    if isinstance(made, Tensor):
        return made.clone()
    if isinstance(made, list | tuple):
        return type(made)(map(own_memory, made))
    if isinstance(made, Decision):
        own = replace(made, scores=made.scores.clone(), keep_mask=made.keep_mask.clone())
        return own.knowing(made.counts)
    if isinstance(made, SparseOutput):
        return SparseOutput(own_memory(made.feats), own_memory(made.decisions))
    return made


def _raise_limit() -> None:
    # Older versions have another name for the limit, with the same meaning.
    config = torch._dynamo.config
    limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    setattr(config, limit, max(getattr(config, limit), RECOMPILE_LIMIT))


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
    _raise_limit()
    for module, name in regions:
        # On the instance: its class, and other models of it, stay as they are.
        setattr(module, name, torch.compile(getattr(module, name), **{'dynamic': False, **kwargs}))
    return model
