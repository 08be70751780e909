"""Ways to fine-tune a sparse model, each to be compared with the recipe of its config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from choice_controls import OraclePolicy
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmdyn.engine.hooks import HoldPretrainedHook
from mmdyn.registry import MODELS
from mmdyn.sparsity import TopKPolicy
from mmdyn.sparsity.decision import Decision
from mmdyn.sparsity.policy import Site, best_of

Hooks = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """A change of a training.

    Attributes:
        text: what changes.
        options: of the config, for a ladder, the hooks so far and the sparse config.
        prepare: called with runner, ladder and class weights before training.
        for_random: whether it also changes a model that chooses at random.
        ladder: index of the ladder in :data:`choice.LADDERS`.
    """

    text: str
    options: Callable[[Sequence[float], Hooks, Config], Mapping[str, Any]] = lambda *_: {}
    prepare: Callable[[Runner, Sequence[float], Sequence[float]], None] = lambda *_: None
    for_random: bool = False
    ladder: int = 0


class NoisyTopKPolicy(TopKPolicy):
    """Top-k of scores with Gumbel noise: explores, but keeps exactly as many as deployed.

    Attributes:
        noise: factor of the noise.
    """

    def __init__(self) -> None:
        self.noise = 1.0

    def __call__(self, log_probs: Tensor, site: Site) -> Decision:
        noise = -torch.empty_like(log_probs).exponential_().log()
        return super().__call__(log_probs + self.noise * noise, site)


class Annealing(Hook):
    """Lowers the noise linearly to 0 over the first two thirds of a training."""

    def __init__(self, policy: NoisyTopKPolicy) -> None:
        self.policy = policy

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Set the noise of an iteration."""
        self.policy.noise = max(0.0, 1 - 1.5 * runner.iter / runner.max_iters)


class RatioSteps(Hook):
    """Trains the first third with half of the keep ratios."""

    def __init__(self, ladder: Sequence[float]) -> None:
        self.ladder = ladder

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Set the ratios of an iteration."""
        factor = 0.5 if runner.iter < runner.max_iters // 3 else 1.0
        runner.model.backbone.set_keep_ratios([factor * ratio for ratio in self.ladder])


class Paths:
    """What both paths of every sparse block gave in the last forward pass.

    Args:
        model: of a host, with a sparse backbone with stages.
    """

    def __init__(self, model: nn.Module) -> None:
        self.backbone = model.backbone
        self.decisions: Sequence[Decision] = ()
        self.updates: dict[int, dict[str, Tensor]] = {}
        blocks = list(self.backbone.blocks_of(self.backbone.sparse_stage))
        self.sparse = [i for i, block in enumerate(blocks) if block.fast_path is not None]
        for index in self.sparse:
            block = blocks[index]
            block.slow_path = self._watched(block.slow_path, index, 'slow')
            block.fast_path.forward = self._watched(block.fast_path.forward, index, 'fast')
        forward = self.backbone.forward_sparse

        def forward_sparse(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            self.decisions = out.decisions
            return out

        self.backbone.forward_sparse = forward_sparse

    def _watched(self, path: Callable[[Tensor], Tensor], index: int, name: str) -> Callable:
        def call(x: Tensor) -> Tensor:
            out = path(x)
            self.updates.setdefault(index, {})[name] = out
            return out

        return call

    def distance(self) -> Tensor:
        """Mean relative squared distance of the fast updates to the slow ones."""
        pairs = [(u['fast'].float(), u['slow'].detach().float()) for u in self.updates.values()]
        terms = [(a - b).square().mean() / b.square().mean() for a, b in pairs]
        return torch.stack(terms).mean()

    def gains(self, predictor: int) -> Tensor:
        """(B, N) by how much the paths differ in the blocks that a predictor decides for."""
        ends = [*self.backbone.sparse_blocks[1:], max(self.sparse) + 1]
        span = range(self.backbone.sparse_blocks[predictor], ends[predictor])
        updates = [self.updates[i] for i in span]
        return sum((u['slow'] - u['fast']).detach().float().norm(dim=-1) for u in updates)


def teach(decision: Decision, worth: Tensor, ratio: float) -> Tensor:
    """Cross-entropy of keep probabilities with the locations that are worth most."""
    best = best_of(worth, ratio, Site(0, ratio, decision.hw)).keep_mask
    probability = decision.scores.exp().clamp(1e-6, 1 - 1e-6)
    return F.binary_cross_entropy(probability, best)


def add_loss(model: nn.Module, name: str, loss: Callable[[], Tensor]) -> None:
    """Add a loss to those of a host's model."""
    own = model.loss

    def with_loss(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return own(*args, **kwargs) | {name: loss()}

    model.loss = with_loss


def _distil(runner: Runner, ladder: Sequence[float], weights: Sequence[float]) -> None:
    paths = Paths(runner.model)
    add_loss(runner.model, 'loss_paths', lambda: 0.5 * paths.distance())


def _teach_gains(runner: Runner, ladder: Sequence[float], weights: Sequence[float]) -> None:
    paths = Paths(runner.model)

    def loss() -> Tensor:
        terms = [teach(d, paths.gains(k), ladder[k]) for k, d in enumerate(paths.decisions)]
        return torch.stack(terms).mean()

    add_loss(runner.model, 'loss_gains', loss)


def _teach_labels(runner: Runner, ladder: Sequence[float], weights: Sequence[float]) -> None:
    paths, oracle = Paths(runner.model), OraclePolicy(weights)
    oracle.watch(runner.model)

    def loss() -> Tensor:
        terms = [teach(d, oracle.worth(d.hw), ladder[k]) for k, d in enumerate(paths.decisions)]
        return torch.stack(terms).mean()

    add_loss(runner.model, 'loss_labels', loss)


def _anneal(runner: Runner, ladder: Sequence[float], weights: Sequence[float]) -> None:
    policy = NoisyTopKPolicy()
    runner.model.backbone.training_policy = policy
    runner.register_hook(Annealing(policy))


def _topk(runner: Runner, ladder: Sequence[float], weights: Sequence[float]) -> None:
    runner.model.backbone.training_policy = TopKPolicy()


def _together(*parts: Callable) -> Callable:
    def prepare(*args: Any) -> None:
        for part in parts:
            part(*args)

    return prepare


def without(hooks: Hooks, name: str) -> dict[str, Any]:
    """Options that remove the hooks with a word in their type."""
    return {'custom_hooks': [hook for hook in hooks if name not in hook['type']]}


def _without_phases(ladder: Sequence[float], hooks: Hooks, config: Config) -> dict[str, Any]:
    return without(hooks, 'Policy')


def _unfitted(ladder: Sequence[float], hooks: Hooks, config: Config) -> dict[str, Any]:
    return without(hooks, 'FitFastPaths')


def _slowly(ladder: Sequence[float], hooks: Hooks, config: Config) -> dict[str, Any]:
    return {'optim_wrapper.paramwise_cfg.part_lr_mult.pretrained': 0.2}


def _hold(runner: Runner, ladder: Sequence[float], weights: Sequence[float]) -> None:
    runner.register_hook(HoldPretrainedHook(end=max(1, runner.max_iters // 3)))


def _slow_updates(ladder: Sequence[float], blocks: Sequence[int], depth: int) -> float:
    """Slow updates of an average location, from the first predictor on."""
    ends = [*blocks[1:], depth]
    return sum(r * (end - start) for r, start, end in zip(ladder, blocks, ends, strict=True))


def _sparse_stage(config: Config) -> tuple[Sequence[int], int]:
    """Blocks with a predictor, and the number of blocks."""
    backbone = MODELS.build(config.model.backbone)
    return backbone.sparse_blocks, backbone.depths[backbone.sparse_stage]


def _one_predictor(ladder: Sequence[float], hooks: Hooks, config: Config) -> dict[str, Any]:
    blocks, depth = _sparse_stage(config)
    ratio = _slow_updates(ladder, blocks, depth) / (depth - blocks[0])
    return {'model.backbone.sparse_blocks': blocks[:1], 'model.backbone.keep_ratios': (ratio,)}


def _deeper(ladder: Sequence[float], hooks: Hooks, config: Config) -> dict[str, Any]:
    blocks, depth = _sparse_stage(config)
    later = [block + depth // 6 for block in blocks]
    left = _slow_updates(ladder, blocks, depth) - depth // 6
    factor = left / _slow_updates(ladder, later, depth)
    return {
        'model.backbone.sparse_blocks': later,
        'model.backbone.keep_ratios': [factor * ratio for ratio in ladder],
    }


RECIPES = {
    '': Recipe('fitted fast paths; Gumbel samples for a third, then top-k'),
    'topk': Recipe('top-k throughout', _without_phases, _topk),
    'annealed': Recipe('top-k with annealed noise', _without_phases, _anneal),
    'gains': Recipe(
        'scores taught where the paths differ', _without_phases, _together(_topk, _teach_gains)
    ),
    'labels': Recipe(
        'scores taught by the labels', _without_phases, _together(_topk, _teach_labels)
    ),
    'ratios': Recipe(
        'half of the ratios for a third',
        prepare=lambda runner, ladder, _: runner.register_hook(RatioSteps(ladder)),
        for_random=True,
    ),
    'one': Recipe('one predictor, as many slow updates', _one_predictor, for_random=True),
    'deeper': Recipe(
        'a sixth more dense blocks, as many slow updates', _deeper, for_random=True, ladder=1
    ),
    'distilled': Recipe(
        'fast paths distilled from the slow ones', prepare=_distil, for_random=True
    ),
    'unfitted': Recipe('fast paths start at random', _unfitted, for_random=True),
    'kept': Recipe(
        'pretrained weights held, then slowly trained; fast paths distilled',
        _slowly,
        _together(_distil, _hold),
        for_random=True,
    ),
}
"""By name; the first is that of the config."""
