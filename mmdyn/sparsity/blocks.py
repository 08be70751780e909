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

    A block's log-odds are the mean of its real locations'. Blocks count by the real
    locations they hold, fewer at the map's border: where a policy keeps a given number of
    locations, blocks are kept until another one would be further from it.

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
    pooled = grid.means(odds, valid)
    block_log_probs = torch.cat([F.logsigmoid(pooled), F.logsigmoid(-pooled)], dim=-1)
    sizes = grid.counts(valid, odds.device).expand(len(odds), -1)
    some = None if valid is None else sizes > 0
    blocks = policy(block_log_probs, replace(site, hw=grid.shape, valid_mask=some, sizes=sizes))
    keep = grid.spread(blocks.keep_mask).flatten(1)
    return Decision(
        scores=grid.spread(blocks.scores).flatten(1),
        keep_mask=keep if valid is None else keep * valid,
        keep_ratio=site.keep_ratio,
        hw=site.hw,
        valid_mask=valid,
    )
