"""Lines: a model with certain ratios and policies, to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from mmdyn.analysis.images import HostBatch
from mmdyn.analysis.measuring import Run
from mmdyn.analysis.stock import build_stock_model
from mmdyn.engine.loading import LoadedModel
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.compiled import compile_regions
from mmdyn.models.deciding import deciding_parts, keep_everything, tile_part
from mmdyn.sparsity import Policy, RandomPolicy, ThresholdPolicy

DENSE, LEARNED, RANDOM, STOCK, TWIN = 'dense', 'learned', 'random', 'stock', 'dense twin'
PARTS = ('backbone', 'end-to-end')
"""Measured from image to feature maps, or from normalised image to predictions."""

DTYPES = dict(bf16=torch.bfloat16, fp16=torch.float16)
"""Autocast dtypes by the names of the command line."""


@dataclass(frozen=True)
class Line:
    """A model with certain settings.

    Attributes:
        kind: ``'dense'`` (all ratios at their maximum), ``'learned'``, ``'random'``, ``'stock'``
            (the host's own dense model), ``'dense twin'`` (trained without sparsity), or the name
            of another policy.
        model: a host's.
        keep_ratios: one per predictor; empty without predictors.
        policy: of a sparse backbone; None for a dense one.
        tile_ratio: fraction of tiles of a head or neck that chooses tiles; None for others.
        tile_policy: of that head or neck; None for others.
        of: the model's name if there are several, else ''.
    """

    kind: str
    model: nn.Module
    keep_ratios: tuple[float, ...] = ()
    policy: Policy | None = None
    tile_ratio: float | None = None
    tile_policy: Policy | None = None
    of: str = ''

    @property
    def name(self) -> str:
        """Unique name for tables and charts."""
        parts = [f'{ratio:g}' for ratio in self.keep_ratios]
        if self.tile_ratio is not None:
            parts.append(f'tiles {self.tile_ratio:g}')
        # A threshold does not depend on keep ratios.
        by_threshold = isinstance(self.policy or self.tile_policy, ThresholdPolicy)
        alike = self.kind in (DENSE, STOCK) or (by_threshold and self.kind != LEARNED)
        if self.of and self.kind == DENSE:
            return f'{self.of}, everything kept' if parts else self.of
        own = f'{self.kind} {", ".join(parts)}' if parts and not alike else self.kind
        return f'{self.of}, {own}' if self.of else own

    @property
    def keeps_everything(self) -> bool:
        """Whether the ratios keep everything."""
        tiles = tile_part(self.model)
        return all(ratio == 1 for ratio in self.keep_ratios) and (
            tiles is None or self.tile_ratio == tiles.highest_ratio
        )

    def apply(self) -> None:
        """Set the model's ratios and policies."""
        if self.policy is not None:
            self.model.backbone.set_keep_ratios(self.keep_ratios)
            self.model.backbone.policy = self.policy
        if self.tile_policy is not None:
            tiles = tile_part(self.model)
            tiles.set_tile_ratio(self.tile_ratio)
            tiles.policy = self.tile_policy

    def runner(self, part: str, dtype: str = 'fp32') -> Run:
        """Return the function to measure, of a :class:`mmdyn.analysis.images.HostBatch`.

        Args:
            part: one of :data:`PARTS`.
            dtype: a key of :data:`DTYPES`, or ``'fp32'`` for no autocast.
        """
        model, device = self.model, next(self.model.parameters()).device

        def run(batch: HostBatch) -> Any:
            self.apply()
            with torch.autocast(device.type, DTYPES.get(dtype), enabled=dtype in DTYPES):
                if part == PARTS[0]:
                    return model.backbone(batch.inputs)
                return model(batch.inputs, batch.samples(), mode='predict')

        return run


def as_set(model: nn.Module) -> Line:
    """Line of a host's model with its current ratios and policies."""
    line, tiles = Line(LEARNED, model), tile_part(model)
    if isinstance(model.backbone, DynamicBackbone):
        backbone = model.backbone
        line = replace(line, keep_ratios=tuple(backbone.keep_ratios), policy=backbone.policy)
    if tiles is not None:
        line = replace(line, tile_ratio=tiles.tile_ratio, tile_policy=tiles.policy)
    return line


def as_dense(model: nn.Module) -> Line:
    """Line of a host's model with everything kept."""
    with restored(model):
        return replace(as_set(keep_everything(model)), kind=DENSE)


def chosen_by(line: Line, policy: Policy) -> Line:
    """The line with another policy for all its decisions."""
    return replace(
        line,
        policy=None if line.policy is None else policy,
        tile_policy=None if line.tile_policy is None else policy,
    )


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore a model's ratios and policies at the end of the block."""
    before = as_set(model)
    try:
        yield
    finally:
        before.apply()


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Keep everything within the block."""
    with restored(model):
        keep_everything(model)
        yield


def set_policy(model: nn.Module, policy: Policy | None) -> None:
    """Set the policy of all modules of a host's model that make decisions; None = unchanged.

    Raises:
        ValueError: if there are none.
    """
    parts = deciding_parts(model)
    if policy is None:
        return
    if not parts:
        raise ValueError(
            f'a policy, {type(policy).__name__}, needs a sparse backbone such as '
            f'mmdyn.DynamicSwin, the config has {type(model.backbone).__name__}: remove it'
        )
    for part in parts:
        part.policy = policy


def lines_of(
    loaded: LoadedModel,
    ladders: Sequence[Sequence[float]] = (),
    *,
    tile_ratios: Sequence[float] = (),
    policies: Mapping[str, Policy] | None = None,
    random: bool = True,
    stock: bool = False,
    seed: int = 0,
    of: str = '',
) -> list[Line]:
    """Lines of a model: dense, and every combination of ratios and policies.

    All but a stock model share its weights. Ratios that keep everything give the dense line.

    Args:
        loaded: the model.
        ladders: tuples of keep ratios, one per predictor; empty = the config's.
        tile_ratios: of a head or neck that chooses tiles; empty = the config's.
        policies: by name, in addition to the model's own and the random one.
        random: whether to include random selection.
        stock: whether to include the host's own dense model.
        seed: of random selection.
        of: the model's name, if there are several.

    Raises:
        TypeError, ValueError: if an argument does not fit the model.
    """
    own = as_set(loaded.model)
    if own.policy is None and (ladders or stock):
        raise ValueError(
            f'keep ratios and --stock need a sparse backbone, {loaded.name} has a '
            f'{type(loaded.backbone).__name__}: remove them'
        )
    if own.tile_policy is None and tile_ratios:
        raise ValueError(
            f'tile ratios need a head or neck that chooses tiles, {loaded.name} has none: '
            'remove them'
        )
    lines = [replace(as_dense(loaded.model), of=of)]
    lines += [Line(STOCK, build_stock_model(loaded), of=of)] if stock else []
    found = {line.name: line for line in lines}
    choices = {LEARNED: None, **({RANDOM: RandomPolicy(seed)} if random else {})}
    with restored(loaded.model):
        for tile_ratio, ladder in product(tile_ratios or (None,), ladders or (None,)):
            if tile_ratio is not None:
                tile_part(loaded.model).set_tile_ratio(tile_ratio)
            if ladder is not None:
                loaded.backbone.set_keep_ratios(ladder)
            own = replace(as_set(loaded.model), of=of)
            if own.keeps_everything:
                continue
            for kind, policy in {**choices, **(policies or {})}.items():
                line = own if policy is None else replace(chosen_by(own, policy), kind=kind)
                found.setdefault(line.name, line)
    return list(found.values())


def compiled(lines: Sequence[Line]) -> list[Line]:
    """Lines with compiled models, except stock ones."""
    models = {id(line.model): line.model for line in lines if line.kind != STOCK}
    done = {key: compile_regions(model) for key, model in models.items()}
    return [replace(line, model=done.get(id(line.model), line.model)) for line in lines]
