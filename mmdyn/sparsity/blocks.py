"""Decisions about blocks of neighbouring locations instead of single ones."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdyn.sparsity.decision import Decision
from mmdyn.sparsity.policy import Policy, Site
from mmdyn.sparsity.tiles import TileGrid


def decide_in_blocks(policy: Policy, log_probs: Tensor, site: Site, side: int) -> Decision:
    """Let a policy choose among the square blocks of a map; a block's locations go together.

    A block's log-odds are the mean of its real locations'. The last blocks of a row or
    column may hold fewer locations than others, so the fraction kept is the asked one up
    to a block.

    Args:
        policy: how scores become a decision.
        log_probs: (B, N, 2) log-probabilities of (keep, drop).
        site: where and for what; without candidates.
        side: of a block, in locations.

    Returns:
        A decision about the N locations.
    """
    grid = TileGrid(site.hw, side)
    valid = site.valid_mask
    odds = (log_probs[..., 0] - log_probs[..., 1]).unflatten(1, site.hw).unsqueeze(1)
    if valid is None:
        pooled, some = grid.means(odds), None
    else:
        real = valid.unflatten(1, site.hw).unsqueeze(1).to(odds.dtype)
        share = grid.means(real)
        pooled = grid.means(odds * real) / share.clamp(min=torch.finfo(odds.dtype).tiny)
        some = share.squeeze(-1) > 0
    block_log_probs = torch.cat([F.logsigmoid(pooled), F.logsigmoid(-pooled)], dim=-1)
    blocks = policy(block_log_probs, replace(site, hw=grid.shape, valid_mask=some))
    keep = grid.spread(blocks.keep_mask).flatten(1)
    return Decision(
        scores=grid.spread(blocks.scores).flatten(1),
        keep_mask=keep if valid is None else keep * valid,
        keep_ratio=site.keep_ratio,
        hw=site.hw,
        valid_mask=valid,
    )
