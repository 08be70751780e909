"""Execution where dropped tokens leave attention too (a plain ViT).

Masked execution computes every token; dropped ones are no attention keys and get no update:
dense, differentiable, for training. Gathered execution computes the kept tokens only: for
inference. Both give the same result for the same decision. ``L`` is the number of tokens: prefix
tokens that no decision concerns (a class token), then the map's locations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdyn.sparsity.compiling import fixed, lazy
from mmdyn.sparsity.decision import Decision, rows_of
from mmdyn.sparsity.routing import Execution


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch, split into active ones and the rest.

    Attributes:
        active: (B, K, C) tokens that blocks run on.
        keep: (B, K) float of 0 and 1, which active tokens count; None = all. In gathered
            execution 0 marks fillers in images that keep fewer tokens than others.
        rest: (B, L - K, C) the others; None if there are none.
        places: indices of the active tokens, (B·K,) int64, and of the rest into the flattened
            (B·L); None = in order.
    """

    active: Tensor
    keep: Tensor | None = None
    rest: Tensor | None = None
    places: tuple[Tensor, Tensor] | None = None

    def after(self, active: Tensor, rest: Tensor | None) -> Tokens:
        """The same tokens with other values."""
        return Tokens(active, self.keep, rest, self.places)

    def joined(self) -> Tensor:
        """(B, L, C), all tokens in their original order."""
        return self._joined

    @lazy
    def _joined(self) -> Tensor:
        if self.rest is None or self.places is None:
            return self.active
        batch, count, channels = self.active.shape
        whole = self.active.new_empty(batch, count + self.rest.shape[1], channels)
        rows = whole.view(-1, channels)
        for part, where in zip((self.active, self.rest), self.places, strict=True):
            rows.index_copy_(0, where, part.reshape(-1, channels))
        return whole


def marked_tokens(x: Tensor, mask: Tensor) -> Tokens:
    """All of (B, L, C) as active; a (B, N) float mask marks which of the last N count."""
    return Tokens(x, F.pad(mask, (x.shape[1] - mask.shape[1], 0), value=1.0))


def split_tokens(x: Tensor, decision: Decision, execution: Execution) -> Tokens:
    """Split (B, L, C) by a decision on the last N tokens."""
    if execution == 'masked':
        return marked_tokens(x, decision.slow_mask)
    if decision.all_slow:
        return Tokens(x)
    batch, length, channels = x.shape
    (prefix,) = fixed(length - decision.keep_mask.shape[1])
    order, most, fewest = decision.slow_first
    if prefix:
        always = torch.arange(prefix, device=x.device).expand(batch, -1)
        order = torch.cat([always, order + prefix], dim=1)
    ends = [prefix + most, length - prefix - most]
    places = [part.flatten() for part in rows_of(order, length).split(ends, dim=1)]
    rows = x.flatten(0, 1)
    active, rest = (rows.index_select(0, where).view(batch, -1, channels) for where in places)
    filled = None
    if fewest != most:
        keep = F.pad(decision.slow_mask.detach(), (prefix, 0), value=1.0)
        filled = keep.gather(1, order[:, : ends[0]])
    return Tokens(active, filled, rest, (places[0], places[1]))


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor, dropout_p: float = 0.0
) -> Tensor:
    """Attention in which a dropped token is no key, except to itself.

    Where ``keep`` requires a gradient, it multiplies the exponentials inside the softmax, which
    tells the predictor what a dropped key would have contributed.

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
    # Scaled first: the product alone could overflow in half precision.
    logits = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).float()
    # The maximum over kept keys, so the sum can't vanish. Larger logits of dropped keys are
    # clamped, since their exponential could overflow.
    top = logits.detach().masked_fill(weight == 0, float('-inf')).amax(dim=-1, keepdim=True)
    exps = (logits - top).clamp(max=0.0).exp() * weight
    attention = exps / exps.sum(dim=-1, keepdim=True)
    return F.dropout(attention.to(value.dtype), dropout_p) @ value
