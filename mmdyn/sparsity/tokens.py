"""Execution where dropped tokens leave attention too (a plain ViT).

Masked execution runs every token and lets dropped ones be no keys and take no update: dense,
differentiable, for training. Gathered execution runs the kept tokens only: for inference. Both
are the same function of the same decision. ``L`` is the number of tokens: the map's locations,
and before them those that no decision is about (a class token).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdyn.sparsity.decision import Decision
from mmdyn.sparsity.routing import Execution


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch, those that blocks run on apart from the others.

    Attributes:
        active: (B, K, C) tokens that blocks run on.
        keep: (B, K) float of 0 and 1, which of them count; None = all do. In
            gathered execution zeros fill up images that keep fewer than others.
        rest: (B, L - K, C) the others; None if there are none.
        order: (B, L) int64, the place of each token; None = as they stand.
    """

    active: Tensor
    keep: Tensor | None = None
    rest: Tensor | None = None
    order: Tensor | None = None

    def joined(self) -> Tensor:
        """(B, L, C): every token at its place."""
        if self.rest is None or self.order is None:
            return self.active
        return take(torch.cat([self.active, self.rest], dim=1), self.order.argsort(dim=1))


def marked_tokens(x: Tensor, mask: Tensor) -> Tokens:
    """All of (B, L, C) as they stand; a (B, N) float mask marks which of the last N count."""
    return Tokens(x, F.pad(mask, (x.shape[1] - mask.shape[1], 0), value=1.0))


def split_tokens(x: Tensor, decision: Decision, execution: Execution) -> Tokens:
    """Part the tokens that a decision about the last N of (B, L, C) keeps from the others."""
    if execution == 'masked':
        return marked_tokens(x, decision.slow_mask)
    if decision.all_slow:
        return Tokens(x)
    prefix = x.shape[1] - decision.slow_mask.shape[1]
    places, most, fewest = decision.slow_first
    always = torch.arange(prefix, device=x.device).expand(x.shape[0], -1)
    order = torch.cat([always, places + prefix], dim=1)
    first, rest = order[:, : prefix + most], order[:, prefix + most :]
    keep = F.pad(decision.slow_mask.detach(), (prefix, 0), value=1.0)
    filled = None if fewest == most else keep.gather(1, first)
    return Tokens(take(x, first), filled, take(x, rest), order)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: (B, L, C) and (B, K) int64 -> (B, K, C)."""
    first = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]
    picked = x.flatten(0, 1).index_select(0, (index + first).flatten())
    return picked.view(*index.shape, x.shape[-1])


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor, dropout_p: float = 0.0
) -> Tensor:
    """Attention in which dropped tokens are queries but no keys, themselves excepted.

    Where ``keep`` wants a gradient, it multiplies the exponentials inside the
    softmax, which tells the predictor what a dropped key would have brought.

    Args:
        query, key, value: (B, heads, L, D).
        keep: (B, L) float of 0 and 1.
        dropout_p: dropout of the attention weights.

    Returns:
        (B, heads, L, D).
    """
    itself = torch.eye(keep.shape[1], dtype=torch.bool, device=keep.device)
    if not keep.requires_grad:
        allowed = (keep > 0)[:, None, None, :] | itself
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, dropout_p=dropout_p
        )
    weight = keep[:, None, None, :].masked_fill(itself, 1.0)
    # Scaled first: in half precision the product alone could overflow.
    logits = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).float()
    # The largest logit of those that count, so that the sum can't vanish. A dropped key may
    # lie above it: what it would bring is bounded, as its exponential could overflow.
    top = logits.detach().masked_fill(weight == 0, float('-inf')).amax(dim=-1, keepdim=True)
    exps = (logits - top).clamp(max=0.0).exp() * weight
    attention = exps / exps.sum(dim=-1, keepdim=True)
    return F.dropout(attention.to(value.dtype), dropout_p) @ value
