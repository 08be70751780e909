"""Two-path execution of the token-wise part of a block (paper, section 3.3).

Masked execution runs both paths everywhere and selects: dense, differentiable,
for training. Gathered execution runs each path on its own locations only: for
inference. Both are the same function of the same decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mmdyn.sparsity.decision import Decision

Execution = Literal['masked', 'gathered']
TokenFn = Callable[[Tensor], Tensor]


def route(
    x: Tensor, decision: Decision | None, slow: TokenFn, fast: TokenFn, execution: Execution
) -> Tensor:
    """Apply ``slow`` to the kept locations of a map and ``fast`` to the others.

    Args:
        x: (B, N, C) features.
        decision: which location takes which path; None = all take the slow one.
        slow: a location-wise function, (..., C) -> (..., C).
        fast: likewise, cheaper.
        execution: ``'masked'`` or ``'gathered'``.

    Returns:
        (B, N, C).
    """
    if decision is None:
        return slow(x)
    run = _masked if execution == 'masked' else _gathered
    return run(x, decision, slow, fast)


def _masked(x: Tensor, decision: Decision, slow: TokenFn, fast: TokenFn) -> Tensor:
    # The value is the chosen path's; the gradient to the mask is the difference
    # of the two paths, which tells the predictor what keeping was worth.
    keep = decision.slow_mask.unsqueeze(-1).to(x.dtype)
    return keep * slow(x) + (1 - keep) * fast(x)


def _gathered(x: Tensor, decision: Decision, slow: TokenFn, fast: TokenFn) -> Tensor:
    if decision.all_slow:
        return slow(x)
    # Flattened over the batch: images may keep different numbers, without padding.
    flat = x.flatten(0, 1)
    kept = slow(flat.index_select(0, decision.keep_idx))
    dropped = fast(flat.index_select(0, decision.drop_idx))
    out = kept.new_empty(flat.shape)
    out.index_copy_(0, decision.keep_idx, kept)
    out.index_copy_(0, decision.drop_idx, dropped.to(kept.dtype))
    return out.view_as(x)
