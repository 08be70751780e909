"""Policies turn scores into a :class:`Decision`.

A policy holds settings only and no state of a forward pass, so one instance serves any number of
models. Every decision carries a straight-through gradient to the scores. At a keep ratio of 1 all
policies but :class:`FixedPolicy` keep every real location. Where decisions only shrink (a plain
ViT), no policy keeps a location that the previous decision dropped.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mmdyn.sparsity.compiling import length_of, takes_gradient
from mmdyn.sparsity.decision import Decision, keep_count


@dataclass(frozen=True, eq=False)
class Site:
    """Context of a decision.

    Attributes:
        index: of the predictor in the backbone, from 0.
        keep_ratio: target fraction of real locations, in (0, 1].
        hw: (H, W) of the map.
        valid_mask: (B, N) bool, real locations; None = all.
        images: (B, C, h, w), the backbone's input: identifies the images of a batch.
        real: (B, h·w) bool, where ``images`` is not padding; None = everywhere.
        candidates: (B, N) float of 0 and 1, kept by the previous decision where decisions only
            shrink; None = every real location.
        candidate_counts: candidates per image if known on the host; at least what
            ``keep_ratio`` asks for.
    """

    index: int
    keep_ratio: float
    hw: tuple[int, int]
    valid_mask: Tensor | None = None
    images: Tensor | None = None
    real: Tensor | None = None
    candidates: Tensor | None = None
    candidate_counts: tuple[int, ...] | None = None


class Policy(Protocol):
    """Any callable that turns scores into a decision."""

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        """Decide from (B, N, 2) log-probabilities of (keep, drop)."""
        ...


class _StraightThrough(torch.autograd.Function):
    # hard + soft - soft.detach() has a rounding error; the weight of a kept location must be
    # exactly 1.

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Value of ``hard`` (float 0/1), gradient of ``soft``; same shapes."""
    hard = hard.to(soft.dtype)
    if not takes_gradient():
        return hard
    return _StraightThrough.apply(hard, soft)  # type: ignore[no-any-return]


def best_of(scores: Tensor, keep_ratio: float, site: Site) -> Decision:
    """Keep the ⌊real · ratio⌋ best of (B, N) scores per image; ties go to the lower index.

    Without padding this does not synchronise with the device.

    Args:
        scores: without gradient.
        keep_ratio: in [0, 1]; 0 keeps one location.
        site: its ``keep_ratio`` is ignored.
    """
    locations = site.hw[0] * site.hw[1]
    counts = [keep_count(locations, keep_ratio)] * length_of(scores)
    eligible, even = site.valid_mask, site.valid_mask is None
    if site.valid_mask is not None:
        counts = [keep_count(real, keep_ratio) for real in site.valid_mask.sum(dim=1).tolist()]
    if site.candidates is not None:
        eligible = site.candidates.detach() > 0
        # Ratios never rise, so there are enough candidates if their counts are known.
        if site.candidate_counts is None:
            even = False
            counts = [min(pair) for pair in zip(counts, eligible.sum(1).tolist(), strict=True)]
    ranked = scores if eligible is None else scores.masked_fill(~eligible, float('-inf'))
    # torch.topk does not define the order of ties; a stable sort does.
    ranking = ranked.argsort(dim=1, descending=True, stable=True)
    keep_mask = torch.zeros_like(scores)
    if even:
        keep_mask.scatter_(1, ranking[:, : counts[0]], 1.0)
    else:
        ends = torch.tensor(counts, device=scores.device).unsqueeze(1)
        chosen = torch.arange(locations, device=scores.device) < ends
        keep_mask.scatter_(1, ranking, chosen.to(scores.dtype))
    decision = Decision(scores, keep_mask, keep_ratio, site.hw, site.valid_mask)
    return decision.knowing(tuple(counts), ranking)


def keep_mask_of(hard: Tensor, soft: Tensor, site: Site) -> Tensor:
    """Straight-through mask of kept locations, without padding and non-candidates.

    Args:
        hard: (B, N) bool, the locations to keep.
        soft: (B, N) float, the relaxation that takes the gradient.
        site: real locations and candidates.

    Returns:
        (B, N) float of 0 and 1; where decisions only shrink, the gradient also reaches the
        previous decision.
    """
    if site.valid_mask is not None:
        hard = hard & site.valid_mask
        # Padding is always dropped, so it gets no gradient.
        soft = soft.masked_fill(~site.valid_mask, 0.0)
    mask = straight_through(hard, soft)
    return mask if site.candidates is None else site.candidates * mask


def make_decision(
    hard: Tensor, soft: Tensor, scores: Tensor, site: Site, counted: Decision | None = None
) -> Decision:
    """Make a decision from (B, N) ``scores``; ``hard`` and ``soft`` as in :func:`keep_mask_of`.

    ``counted`` is a decision on the same locations with known counts.
    """
    if site.keep_ratio >= 1:
        hard, counted = torch.ones_like(hard), keep_all(scores, site)
    counts, ranking = (None, None) if counted is None else (counted.counts, counted.ranking)
    keep_mask = keep_mask_of(hard, soft, site)
    decision = Decision(scores, keep_mask, site.keep_ratio, site.hw, site.valid_mask)
    return decision.knowing(counts, ranking)


def keep_all(scores: Tensor, site: Site) -> Decision:
    """Keep all real locations and candidates, without gradient; padding takes the slow path too."""
    whole = (site.hw[0] * site.hw[1],) * length_of(scores)
    mask = torch.ones_like(scores) if site.valid_mask is None else site.valid_mask.to(scores.dtype)
    every_candidate = site.candidates is None or site.candidate_counts == whole
    if site.candidates is not None and not every_candidate:
        mask = mask * site.candidates.detach()
    decision = Decision(scores, mask, site.keep_ratio, site.hw, site.valid_mask)
    return decision.knowing(whole if every_candidate else None)


class TopKPolicy:
    """Keeps exactly ⌊real · ratio⌋ locations of every image: the default at inference.

    The gradient is that of the sigmoid of a location's log-odds minus those of the last kept
    location. Like the selection it is invariant to a shift of all log-odds of an image, so
    training can't drift along that shift.
    """

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        scores = log_probs[..., 0]
        if not (log_probs.requires_grad and takes_gradient()):
            if site.keep_ratio >= 1:
                return keep_all(scores, site)
            return best_of(scores, site.keep_ratio, site)
        best = best_of(scores.detach(), site.keep_ratio, site)
        hard = best.keep_mask > 0
        odds = scores - log_probs[..., 1]
        last = odds.masked_fill(~hard, float('inf')).amin(dim=1, keepdim=True)
        return make_decision(hard, (odds - last).sigmoid(), scores, site, best)


class GumbelPolicy:
    """Samples hard decisions from the scores: the default in training.

    Straight-through Gumbel-softmax (Jang et al., 2017), drawn in float32 from torch's global
    generator. In distributed training each rank draws its own noise, even if all ranks have the
    same seed.

    Args:
        tau: temperature, positive.

    Raises:
        ValueError: if ``tau`` is not positive.
    """

    def __init__(self, tau: float = 1.0) -> None:
        if not tau > 0:
            raise ValueError(f'GumbelPolicy needs a positive temperature tau, got {tau}')
        self.tau = tau

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        logits = log_probs.float()
        draws = torch.empty_like(logits, memory_format=torch.contiguous_format)
        draws.exponential_(generator=_generator_of_rank(logits.device))
        soft = ((logits - draws.log()) / self.tau).softmax(dim=-1)[..., 0]
        return make_decision(soft.detach() > 0.5, soft, log_probs[..., 0], site)


def _generator_of_rank(device: torch.device) -> torch.Generator | None:
    """The generator of this rank; None, torch's global generator, on rank 0."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    if rank == 0:
        return None
    # Seeded from the global generator, so restoring its state on resume restores this one too.
    seed = int(torch.randint(2**62, (), device='cpu')) + rank
    return torch.Generator(device).manual_seed(seed)


class ThresholdPolicy:
    """Keeps the locations whose keep probability exceeds a threshold.

    Input-adaptive: images keep different numbers of locations, at least one each. The keep ratio
    is ignored, except that 1 keeps everything.

    Args:
        threshold: probability in [0, 1).

    Raises:
        ValueError: if ``threshold`` is outside [0, 1).
    """

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f'ThresholdPolicy needs a threshold in [0, 1), got {threshold}')
        self.threshold = threshold

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        scores = log_probs[..., 0]
        soft = scores.exp()
        # A ratio of 0 keeps the best location of each image.
        best = best_of(scores.detach(), 0.0, site).keep_mask > 0
        return make_decision((soft.detach() > self.threshold) | best, soft, scores, site)


class RandomPolicy:
    """Keeps ⌊real · ratio⌋ locations at random: the control for learned selection.

    Each image and predictor gets its own draw, which depends only on the seed, the predictor and
    the content of the image: the same seed gives the same forward in any order of evaluation, at
    any batch size and padding. Identical images in one batch also use their position.

    Args:
        seed: any integer.

    Raises:
        TypeError: if ``seed`` is not an integer.
    """

    def __init__(self, seed: int = 0) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(f'{type(self).__name__} needs an integer as its seed, got {seed!r}')
        self.seed = seed

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        scores = log_probs[..., 0]
        draws = torch.zeros(scores.shape)
        everywhere = torch.ones(scores.shape, dtype=torch.bool)
        real = everywhere if site.valid_mask is None else site.valid_mask.cpu()
        for row, where, seed in zip(draws, real, self.seeds(len(draws), site), strict=True):
            generator = torch.Generator().manual_seed(seed)
            row[where] = torch.rand(int(where.sum()), generator=generator)
        draws = draws.to(scores.device)
        best = best_of(draws, site.keep_ratio, site)
        return make_decision(best.keep_mask > 0, scores.exp(), scores, site, best)

    def seeds(self, batch: int, site: Site) -> list[int]:
        """Return one random seed for each of ``batch`` images."""
        contents = [''] * batch
        if site.images is not None:
            contents = _contents(site.images, site.real)
        return [
            _hash(self.seed, site.index, content, contents[:position].count(content))
            for position, content in enumerate(contents)
        ]


class StaticPolicy(RandomPolicy):
    """Keeps the same ⌊real · ratio⌋ locations in every image: the control for per-image selection.

    Drawn once per predictor and map size, from the seed alone. Locations kept at one ratio are
    also kept at every higher ratio.

    Args:
        seed: any integer.
    """

    def seeds(self, batch: int, site: Site) -> list[int]:
        return [_hash(self.seed, site.index)] * batch


def _contents(images: Tensor, real: Tensor | None) -> list[str]:
    """Fingerprint of each image, robust to padding, summation order and rounding errors."""
    values = images.detach().double().flatten(2)
    if real is not None:
        values = values.masked_fill(~real.unsqueeze(1), 0.0)
    sums = torch.stack([values.sum(dim=(1, 2)), values.abs().sum(dim=(1, 2))], dim=1)
    return [
        f'{magnitude:.5e} {total / max(magnitude, 1e-30):.5f}' for total, magnitude in sums.tolist()
    ]


def _hash(*parts: Any) -> int:
    # random.Random hashes a string the same way in every process.
    return random.Random('/'.join(map(str, parts))).getrandbits(63)


class FixedPolicy:
    """Replays given decisions, one per predictor, on a batch of the same shape.

    Raises ValueError when called for a predictor without a decision, or when the shape of batch or
    map differs.

    Args:
        decisions: as returned by ``forward_sparse``.
    """

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.decisions = tuple(decisions)
        masks = [decision.keep_mask.detach() for decision in self.decisions]
        # If the decisions shrink like a ViT's, earlier ones leave later ones unchanged.
        self.shrink = all(
            first.shape == then.shape and bool((then <= first).all())
            for first, then in itertools.pairwise(masks)
        )

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        if site.index >= len(self.decisions):
            raise ValueError(
                f'FixedPolicy holds {len(self.decisions)} decisions, '
                f'but predictor {site.index} needs one; give one per predictor'
            )
        given = self.decisions[site.index]
        scores = log_probs[..., 0]
        if given.hw != tuple(site.hw) or given.keep_mask.shape != scores.shape:
            raise ValueError(
                f'FixedPolicy holds a decision of shape {tuple(given.keep_mask.shape)} on a '
                f'{given.hw} map for predictor {site.index}, but the batch needs '
                f'{tuple(scores.shape)} on {tuple(site.hw)}; replay it on the same image sizes'
            )
        if site.valid_mask is None:
            site = replace(site, valid_mask=given.valid_mask)
        keep_mask = keep_mask_of(given.keep_mask.detach() > 0, scores.exp(), site)
        decision = replace(given, keep_mask=keep_mask, valid_mask=site.valid_mask)
        own = site.candidates is None or (self.shrink and site.candidate_counts is not None)
        same = own and site.valid_mask is given.valid_mask
        return decision.knowing(given.counts, given.ranking) if same else decision
