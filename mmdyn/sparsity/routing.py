"""Two-path execution of the token-wise part of a block (paper, section 3.3).

Masked execution computes both paths everywhere and selects: dense, differentiable, for training.
Gathered execution computes each path on its own locations only: for inference. Both give the same
result for the same decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mmdyn.sparsity.compiling import is_traced
from mmdyn.sparsity.decision import Decision

Execution = Literal['masked', 'gathered']
TokenFn = Callable[[Tensor], Tensor]


# Elements per chunk on CPU. The hidden activations of an MLP, four times as many, then stay in
# cache and in reused memory; larger buffers are freshly mapped pages, which the system has to
# zero first.
PIECE = 2**19


def in_pieces(fn: TokenFn, x: Tensor) -> Tensor:
    """Apply a location-wise ``fn`` to (..., C), in chunks on CPU when the map is large."""
    # A traced graph is specialised to one size and leaves memory to the runtime.
    if x.device.type != 'cpu' or is_traced(x) or x.numel() < 2 * PIECE:
        return fn(x)
    flat = x.reshape(-1, x.shape[-1])
    # Powers of two divide most maps evenly: equal chunk shapes compile once.
    parts = flat.chunk(2 ** math.ceil(math.log2(x.numel() / PIECE)))
    return torch.cat([fn(part) for part in parts]).view(*x.shape[:-1], -1)


def route(
    x: Tensor, decision: Decision | None, slow: TokenFn, fast: TokenFn, execution: Execution
) -> Tensor:
    """Apply ``slow`` to the kept locations of a map and ``fast`` to the rest.

    Args:
        x: (B, N, C) features.
        decision: which location takes which path; None = all take the slow one.
        slow: a pointwise function, (..., C) -> (..., C).
        fast: likewise, cheaper.
        execution: ``'masked'`` or ``'gathered'``.

    Returns:
        (B, N, C).
    """
    if execution == 'masked':
        if decision is None:
            return slow(x)
        # The gradient to the mask is the difference of the two paths: what keeping was worth.
        keep = decision.slow_mask.unsqueeze(-1).to(x.dtype)
        return keep * slow(x) + (1 - keep) * fast(x)
    if decision is None or decision.all_slow:
        return in_pieces(slow, x)
    # Flattened over the batch, since images may keep different numbers of locations.
    rows = x.flatten(0, 1).index_select(0, decision.order)
    count = sum(decision.slow_counts)
    kept = in_pieces(slow, rows[:count])
    out = kept.new_empty(rows.shape)
    out.index_copy_(0, decision.keep_idx, kept)
    out.index_copy_(0, decision.drop_idx, in_pieces(fast, rows[count:]).to(kept.dtype))
    return out.view_as(x)
