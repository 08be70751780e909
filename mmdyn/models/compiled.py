"""torch.compile for sparse models: whole backbones and heads, or regions of their blocks.

:func:`compile_model` compiles a backbone into one graph, decisions and gathering included: fewest
kernel launches, and a requirement of CUDA graphs. :func:`compile_regions` compiles the attention,
MLP and fast path of a block separately. Blocks of a stage differ in their weights only and share
the code, which saves minutes of C++ compilation on a CPU.
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
"""Batch sizes for which :func:`compile_model` compiles a module; others run eagerly."""

RECOMPILE_LIMIT = 128
"""Number of graphs per function after which torch falls back to eager mode."""


def compile_model(model: nn.Module, **kwargs: Any) -> nn.Module:
    """Compile every sparse backbone and every ``DynamicUPerHead`` as one graph each, in place.

    The graph covers evaluation by top-k in gathered execution without padding; everything else,
    and other heads and necks, run eagerly. It is compiled on the first batch of each size at the
    current ratios, for the first :data:`MAX_SIZES` sizes; others run eagerly, with one warning. The
    state dict is unchanged; a compiled model can't be copied or pickled. Torch's process-wide limit
    of graphs per function is raised to :data:`RECOMPILE_LIMIT` if it is lower.

    Args:
        model: a sparse backbone or head, or a model that contains some.
        **kwargs: of ``torch.compile``; by default ``dynamic=False`` and, on a CUDA device,
            ``mode='reduce-overhead'`` (CUDA graphs).

    Returns:
        ``model``.

    Raises:
        ImportError: if torch is older than 2.10, which breaks the graph.
        ValueError: if the model has nothing to compile.
    """
    if Version(torch.__version__).release < (2, 10):
        raise ImportError(
            f'compile_model needs torch 2.10 or later, found {torch.__version__}: use '
            'mmdyn.models.compiled.compile_regions'
        )
    parts = [module for module in model.modules() if hasattr(module, 'compiled_whole')]
    if not parts:
        raise ValueError(
            f'{type(model).__name__} has nothing to compile: it has no sparse backbone such as '
            'mmdyn.DynamicSwin; use torch.compile for a dense one'
        )
    _raise_limit()
    for part in parts:
        # On the instance, so that other models of the class are unaffected.
        setattr(part, part.compiled_whole, _Whole(part, kwargs))
    return model


class _Whole:
    """Runs a method compiled in unpadded top-k evaluation, else eagerly."""

    def __init__(self, part: Any, kwargs: dict[str, Any]) -> None:
        self.part, self.kwargs = part, kwargs
        # From the class: the instance may have been compiled before.
        self.eager = getattr(type(part), part.compiled_whole).__get__(part)
        self.compiled: Callable | None = None
        self.sizes: set[tuple] = set()
        self.warned = False

    def compile(self, on_cuda: bool) -> Callable:
        """Compile the method for the device of its inputs."""
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
        """Whether these sizes are compiled already or may be."""
        device = maps[0].device
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast_of(device)
        ratios = getattr(self.part, 'keep_ratios', None) or self.part.tile_ratio
        size = (*((x.shape, x.stride(), x.dtype) for x in maps), device, modes, ratios)
        if len(self.sizes) < MAX_SIZES:
            self.sizes.add(size)
        if size in self.sizes:
            return True
        if not self.warned:
            self.warned = True
            print_log(
                f'{type(self.part).__name__} is compiled for {MAX_SIZES} batch sizes or ratios '
                f'and runs eagerly at others, such as {tuple(maps[0].shape)}; resize images to '
                'fewer sizes',
                logger='current',
                level=logging.WARNING,
            )
        return False


def autocast_of(device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a device; None if autocast is off."""
    kind = device.type
    if kind not in ('cpu', 'cuda'):
        return None
    on = torch.is_autocast_enabled() if kind == 'cuda' else torch.is_autocast_cpu_enabled()
    of = torch.get_autocast_gpu_dtype if kind == 'cuda' else torch.get_autocast_cpu_dtype
    return of() if on else None


def own_memory(made: Any) -> Any:
    """Copy out of the memory of a CUDA graph, which its next run overwrites."""
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
    # Older versions of torch use another name for the limit.
    config = torch._dynamo.config
    limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    setattr(config, limit, max(getattr(config, limit), RECOMPILE_LIMIT))


def compile_regions(model: nn.Module, **kwargs: object) -> nn.Module:
    """Compile the regions of every sparse block in a model, in place.

    A region is compiled when it first meets a shape (number of kept locations, size of the map).
    The gathering in between and everything but our sparse backbones run eagerly. The state dict is
    unchanged; a compiled model can't be copied or pickled. Torch's process-wide limit of graphs per
    function is raised to :data:`RECOMPILE_LIMIT` if it is lower.

    Args:
        model: a sparse backbone, or a model that contains one.
        **kwargs: of ``torch.compile``; by default ``dynamic=False``.

    Returns:
        ``model``.

    Raises:
        ValueError: if the model has nothing to compile.
    """
    regions = [
        (module, name)
        for module in model.modules()
        for name in getattr(module, 'compiled_regions', ())
    ]
    if not regions:
        raise ValueError(
            f'{type(model).__name__} has no regions to compile: it has no sparse backbone such '
            'as mmdyn.DynamicSwin; use torch.compile for a dense one'
        )
    _raise_limit()
    for module, name in regions:
        # On the instance, so that other models of the class are unaffected.
        setattr(module, name, torch.compile(getattr(module, name), **{'dynamic': False, **kwargs}))
    return model
