"""A model at a setting: what is measured, and which settings of a model are."""

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
"""What is measured, image tensor to feature maps, or normalised image tensor to predictions."""

DTYPES = dict(bf16=torch.bfloat16, fp16=torch.float16)
"""Of autocast, as the hosts do it with mixed precision, by the name that users give."""


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
        of: the model's name, where there are several; '' = there is one.
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
        """What it is called in tables and charts, different from all others'."""
        parts = [f'{ratio:g}' for ratio in self.keep_ratios]
        if self.tile_ratio is not None:
            parts.append(f'tiles {self.tile_ratio:g}')
        # Keep ratios have no say in a threshold.
        by_threshold = isinstance(self.policy or self.tile_policy, ThresholdPolicy)
        alike = self.kind in (DENSE, STOCK) or (by_threshold and self.kind != LEARNED)
        if self.of and self.kind == DENSE and not parts:
            return self.of
        own = f'{self.kind} {", ".join(parts)}' if parts and not alike else self.kind
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
        """What is measured: a function of a :class:`mmdyn.analysis.images.HostBatch`.

        Args:
            part: one of :data:`PARTS`.
            dtype: a key of :data:`DTYPES`, or ``'fp32'`` for none.
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
def restored(model: nn.Module) -> Iterator[None]:
    """Give a model back its own ratios and policies when the block ends."""
    before = as_set(model)
    try:
        yield
    finally:
        before.apply()


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Have a model keep everything inside the block."""
    with restored(model):
        keep_everything(model)
        yield


def set_policy(model: nn.Module, policy: Policy | None) -> None:
    """Have everything in a host's model that decides choose by a policy; None = as it is.

    Raises:
        ValueError: if nothing does.
    """
    parts = deciding_parts(model)
    if policy is None:
        return
    if not parts:
        raise ValueError(
            f'a policy, {type(policy).__name__}, is for a sparse backbone such as '
            f'mmdyn.DynamicSwin, the config has {type(model.backbone).__name__}: leave it out'
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
    """A model dense, and with every combination of ratios and ways to choose.

    All but a stock one share its weights. Ratios that keep everything are the dense line.

    Args:
        loaded: the model.
        ladders: keep ratios, one per predictor each; empty = the config's.
        tile_ratios: of a head or neck that goes by tiles; empty = the config's.
        policies: by name, more ways to choose than the model's own and the random one.
        random: whether the random choice takes part.
        stock: whether the host's own dense model takes part.
        seed: of the random choice.
        of: the model's name, where there are several.

    Raises:
        TypeError, ValueError: if something does not fit the model.
    """
    own = as_set(loaded.model)
    if own.policy is None and (ladders or stock):
        raise ValueError(
            f'keep ratios and --stock are for a sparse backbone, {loaded.name} has a '
            f'{type(loaded.backbone).__name__}: leave them out'
        )
    if own.tile_policy is None and tile_ratios:
        raise ValueError(
            f'tile ratios are for a head or neck that goes by tiles, {loaded.name} has none: '
            'leave them out'
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
    """The lines with compiled models; a stock model stays as it is."""
    models = {id(line.model): line.model for line in lines if line.kind != STOCK}
    done = {key: compile_regions(model) for key, model in models.items()}
    return [replace(line, model=done.get(id(line.model), line.model)) for line in lines]
