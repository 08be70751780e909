"""A model at a setting: what is measured, and which settings of a model are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mmdyn.analysis.images import Batch
from mmdyn.analysis.latency import Run
from mmdyn.analysis.measuring import in_dtype
from mmdyn.analysis.stock import build_stock_model
from mmdyn.engine.loading import LoadedModel
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.deciding import keep_everything, tile_part
from mmdyn.sparsity import Policy, RandomPolicy, ThresholdPolicy, TopKPolicy

DENSE, LEARNED, RANDOM, STOCK, TWIN = 'dense', 'learned', 'random', 'stock', 'dense twin'
PARTS = ('backbone', 'end-to-end')
"""What is measured, image tensor to feature maps, or normalised image tensor to predictions."""


@dataclass(frozen=True)
class Line:
    """A model at a setting.

    Attributes:
        kind: ``'dense'`` (every ratio at its highest), ``'learned'``, ``'random'``,
            ``'stock'`` (the host's own dense model), ``'dense twin'`` (one that was trained as
            such), or another policy's name.
        model: what runs, a host's.
        keep_ratios: one per predictor; empty where there are none.
        policy: how a sparse backbone chooses; None = it has nothing to choose.
        tile_ratio: fraction of tiles that a head or neck works on in full; None = it has none.
        tile_policy: how it chooses them; None = it has nothing to choose.
        title: what it is called; '' = kind and ratios.
        of: the model's name, where there are several; '' = there is one.
    """

    kind: str
    model: nn.Module
    keep_ratios: tuple[float, ...] = ()
    policy: Policy | None = None
    tile_ratio: float | None = None
    tile_policy: Policy | None = None
    title: str = ''
    of: str = ''

    @property
    def name(self) -> str:
        """What it is called in tables and charts, different from all others'."""
        parts = [f'{ratio:g}' for ratio in self.keep_ratios]
        if self.tile_ratio is not None:
            parts.append(f'tiles {self.tile_ratio:g}')
        own = self.title or self.kind
        if parts and not self.title and self.kind not in (DENSE, STOCK):
            own = f'{self.kind} {", ".join(parts)}'
        return f'{self.of}, {own}' if self.of else own

    @property
    def keeps_everything(self) -> bool:
        """Whether the ratios leave nothing to choose."""
        tiles = tile_part(self.model)
        return all(ratio == 1 for ratio in self.keep_ratios) and (
            tiles is None or self.tile_ratio == tiles.highest_ratio
        )

    def apply(self) -> None:
        """Have the model keep so much, chosen so, from now on."""
        if self.policy is not None:
            self.model.backbone.set_keep_ratios(self.keep_ratios)
            self.model.backbone.policy = self.policy
        if self.tile_policy is not None:
            tiles = tile_part(self.model)
            tiles.set_tile_ratio(self.tile_ratio)
            tiles.policy = self.tile_policy

    def runner(self, part: str, dtype: str = 'fp32') -> Run:
        """What is measured: a function of a :class:`mmdyn.analysis.images.Batch`.

        Args:
            part: one of :data:`PARTS`.
            dtype: a key of :data:`mmdyn.analysis.measuring.DTYPES`.
        """
        model = self.model

        def extract(batch: Batch) -> Any:
            return model.backbone(batch.inputs)

        def predict(batch: Batch) -> Any:
            return model(batch.inputs, batch.samples(), mode='predict')

        device = next(model.parameters()).device
        run = in_dtype(extract if part == PARTS[0] else predict, dtype, device)

        def run_line(batch: Batch) -> Any:
            self.apply()
            return run(batch)

        return run_line


def as_set(model: nn.Module) -> Line:
    """A host's model with the ratios and policies that it has now."""
    line, tiles = Line(LEARNED, model), tile_part(model)
    if isinstance(model.backbone, DynamicBackbone):
        backbone = model.backbone
        line = replace(line, keep_ratios=tuple(backbone.keep_ratios), policy=backbone.policy)
    if tiles is not None:
        line = replace(line, tile_ratio=tiles.tile_ratio, tile_policy=tiles.policy)
    return line


def as_dense(model: nn.Module) -> Line:
    """A host's model with everything kept."""
    with restored(model):
        return replace(as_set(keep_everything(model)), kind=DENSE)


def chosen_by(line: Line, policy: Policy) -> Line:
    """The line with another policy for whatever it has to choose."""
    return replace(
        line,
        policy=None if line.policy is None else policy,
        tile_policy=None if line.tile_policy is None else policy,
    )


@contextmanager
def restored(model: nn.Module) -> Iterator[Line]:
    """Give a model back its own ratios and policies when the block ends; yields these."""
    before = as_set(model)
    try:
        yield before
    finally:
        before.apply()


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Have a model keep everything inside the block."""
    with restored(model):
        keep_everything(model)
        yield


def lines_of(
    loaded: LoadedModel,
    ladders: Sequence[tuple[float, ...]] = (),
    *,
    policy: Policy | None = None,
    random: bool = True,
    stock: bool = False,
    seed: int = 0,
) -> list[Line]:
    """A model dense, and at keep ratios; all but a stock one share its weights.

    Args:
        loaded: the model.
        ladders: keep ratios to measure, one per predictor each; empty = the config's.
        policy: how the learned choice is made; None = as the config says.
        random: whether each is measured with a random choice too.
        stock: whether the host's own dense model takes part.
        seed: of the random choice.

    Raises:
        ValueError: if a dense model is asked for keep ratios or a policy, keep ratios
            don't fit, or there is no stock model.
    """
    own = as_set(loaded.model)
    if own.policy is None:
        if ladders or stock or (policy is not None and own.tile_policy is None):
            raise ValueError(
                f'keep ratios, policies and --stock are for a sparse backbone, '
                f'{loaded.name} has a {type(loaded.backbone).__name__}: leave them out'
            )
        if own.tile_policy is None:
            return [replace(own, kind=DENSE)]

    lines = [Line(STOCK, build_stock_model(loaded))] if stock else []
    lines.append(as_dense(loaded.model))
    for ladder in ladders or [own.keep_ratios]:
        line = replace(own, keep_ratios=_checked(loaded, ladder))
        lines.append(line if policy is None else chosen_by(line, policy))
        if random:
            lines.append(replace(chosen_by(line, RandomPolicy(seed)), kind=RANDOM))
    return lines


def _checked(loaded: LoadedModel, ladder: Sequence[float]) -> tuple[float, ...]:
    """Keep ratios as the backbone has them, which says what is wrong with them."""
    if not loaded.is_sparse:
        return ()
    with restored(loaded.model):
        loaded.backbone.set_keep_ratios(ladder)
        return tuple(loaded.backbone.keep_ratios)


def lines_to_sweep(
    loaded: LoadedModel,
    ladders: Sequence[tuple[float, ...]],
    *,
    tile_ratios: Sequence[float] = (),
    policies: Mapping[str, Policy] | None = None,
    random: bool = True,
    seed: int = 0,
) -> list[Line]:
    """Every combination of ratios and policies, the dense model first.

    Args:
        loaded: the model.
        ladders: keep ratios, one per predictor each; empty for a dense backbone.
        tile_ratios: of a head or neck that goes by tiles; empty = the config's.
        policies: by name, more ways to choose than the learned and the random one.
        random: whether the random choice takes part.
        seed: of the random choice.

    Raises:
        TypeError, ValueError: if something does not fit the model.
    """
    tiles = tile_part(loaded.model)
    if tile_ratios and tiles is None:
        raise ValueError(
            f'tile ratios are for a head or neck that goes by tiles, {loaded.name} has none: '
            'leave them out'
        )
    found: dict[str, Line] = {}
    with restored(loaded.model):
        for tile_ratio in tile_ratios or (None,):
            if tile_ratio is not None:
                tiles.set_tile_ratio(tile_ratio)
            lines = lines_of(loaded, ladders, random=random, seed=seed)
            for name, policy in (policies or {}).items():
                lines += _lines_at(loaded, ladders, name, policy)
            kept = [line for line in lines if line.kind == DENSE or not line.keeps_everything]
            found |= {line.name: line for line in kept}
    return list(found.values())


def _lines_at(
    loaded: LoadedModel, ladders: Sequence[tuple[float, ...]], name: str, policy: Policy
) -> list[Line]:
    """The lines of another policy than the learned and the random one."""
    alike = isinstance(policy, ThresholdPolicy)  # keep ratios below 1 have no say
    ladders = [ladder for ladder in ladders if min(ladder) < 1][:1] if alike else ladders
    lines = lines_of(loaded, ladders, policy=policy, random=False)
    title = name if alike else ''
    return [replace(line, kind=name, title=title) for line in lines if line.kind != DENSE]


def lines_to_compare(
    name: str,
    loaded: LoadedModel,
    *,
    learned: Sequence[float],
    random: Sequence[float],
    seed: int = 0,
) -> list[Line]:
    """One of several models: the learned choice and the random one, or the dense model.

    Args:
        name: what it is called.
        loaded: the model.
        learned, random: first keep ratios of a sparse one; later ones fall from each.
        seed: of the random choice.
    """
    if not loaded.is_sparse:
        return [Line(DENSE, loaded.model, of=name)]
    choices = ((LEARNED, TopKPolicy(), learned), (RANDOM, RandomPolicy(seed), random))
    return [
        Line(kind, loaded.model, loaded.ladder(ratio), policy, of=name)
        for kind, policy, ratios in choices
        for ratio in ratios
    ]
