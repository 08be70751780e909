"""What a whole model executes for pictures, dense and sparse, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmdyn.analysis.complexity import PREDICTORS, MacCount, count_executed, module_groups
from mmdyn.analysis.lines import dense
from mmdyn.converters.additions import is_new
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.deciding import tile_part


@dataclass
class Executed:
    """What was executed for some pictures.

    Attributes:
        totals: multiply-adds for each picture.
        count: of all of them together.
        kept: for each picture, the kept fraction at each predictor.
    """

    totals: list[int] = field(default_factory=list)
    count: MacCount = field(default_factory=MacCount)
    kept: list[Sequence[float]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Multiply-adds per picture."""
        return sum(self.totals) / len(self.totals)

    def by_group(self) -> dict[str, float]:
        """Multiply-adds of each part per picture."""
        return {group: macs / len(self.totals) for group, macs in self.count.by_group().items()}

    def kept_fractions(self) -> list[float]:
        """Mean kept fraction at each predictor; empty if none was told."""
        return [sum(column) / len(column) for column in zip(*self.kept, strict=True)]

    def add(self, count: MacCount, results: Sequence[Any]) -> None:
        """Add a picture: what it cost, and the samples that came out."""
        self.totals.append(count.total)
        self.count.add(count)
        fractions = [result.metainfo.get('kept_fractions') for result in results]
        self.kept += [kept for kept in fractions if kept is not None]


def is_sparse(model: nn.Module) -> bool:
    """Whether a model leaves anything out: in the backbone, or in a part that chooses tiles."""
    return isinstance(model.backbone, DynamicBackbone) or tile_part(model) is not None


def measure(
    model: nn.Module,
    pictures: Iterable[Mapping[str, Any]],
    advance: Callable[[], Any] = lambda: None,
) -> dict[str, Executed]:
    """Count what a model executes to predict.

    Args:
        model: a host's, in evaluation mode.
        pictures: each as the host's loader hands it over, a batch of one.
        advance: called after each picture.

    Returns:
        ``'dense'``, and ``'sparse'`` if the backbone is one of ours, or the head chooses
        tiles. Dense is then the same model with everything kept, without its predictors,
        which a dense model hasn't.
    """
    sparse = is_sparse(model)
    executed = {name: Executed() for name in (('dense', 'sparse') if sparse else ('dense',))}
    for picture in pictures:
        if sparse:
            executed['sparse'].add(*predict(model, picture))
            with dense(model):
                count, results = predict(model, picture)
            executed['dense'].add(count.without(PREDICTORS), results)
        else:
            executed['dense'].add(*predict(model, picture))
        advance()
    return executed


def predict(model: nn.Module, picture: Mapping[str, Any]) -> tuple[MacCount, Any]:
    """Predict for a picture; returns what that executed, and the results."""
    data = model.data_preprocessor(picture, training=False)
    return count_executed(lambda: model(**data, mode='predict'), model)


def count_parameters(model: nn.Module) -> dict[str, Counter[str]]:
    """Parameters of each part of a model: ``'dense'`` without what only a sparse one has.

    Returns:
        Counts by part under ``'dense'``, and under ``'sparse'`` if the model is
        sparse; the backbone first, else parts in the model's order.
    """
    groups = module_groups(model)
    kinds = ('dense', 'sparse') if is_sparse(model) else ('dense',)
    counts = {kind: Counter(backbone=0) for kind in kinds}
    owners = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        group = groups[id(owners[name.rpartition('.')[0]])]
        for kind, count in counts.items():
            if kind == 'sparse' or not is_new(name):
                count[group] += parameter.numel()
    return counts
