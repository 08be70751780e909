"""Multiply-adds and parameters of a whole model, dense and sparse, by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from mmdyn.analysis.counting import PREDICTORS, MacCount, count_executed, module_groups
from mmdyn.analysis.lines import dense
from mmdyn.converters.additions import is_new
from mmdyn.models.deciding import deciding_parts


def is_sparse(model: nn.Module) -> bool:
    """Whether a model has a sparse backbone, head or neck."""
    return bool(deciding_parts(model))


def count_prediction(model: nn.Module, picture: Mapping[str, Any]) -> tuple[MacCount, Any]:
    """Predict a host loader's batch of one; returns the count and the results."""
    data = model.data_preprocessor(picture, training=False)
    return count_executed(lambda: model(**data, mode='predict'), model)


def count_predictions(
    model: nn.Module,
    pictures: Iterable[Mapping[str, Any]],
    advance: Callable[[], Any] = lambda: None,
) -> dict[str, list[tuple[MacCount, Sequence[float]]]]:
    """Count the multiply-adds for each picture; calls ``advance`` after each.

    Returns:
        ``'dense'``, and ``'sparse'`` if backbone or head are: each picture's count, and the
        fraction that each predictor kept. Dense is the same model with everything kept, without
        predictors.
    """
    found: dict[str, list] = {'dense': [], 'sparse': []} if is_sparse(model) else {'dense': []}
    for picture in pictures:
        if 'sparse' in found:
            count, (result, *_) = count_prediction(model, picture)
            found['sparse'].append((count, result.metainfo.get('kept_fractions', ())))
            with dense(model):
                found['dense'].append((count_prediction(model, picture)[0].without(PREDICTORS), ()))
        else:
            found['dense'].append((count_prediction(model, picture)[0], ()))
        advance()
    return found


def count_parameters(model: nn.Module) -> dict[str, Counter[str]]:
    """Parameters of each part of a model; ``'dense'`` excludes those of sparse models only.

    Returns:
        Counts by part under ``'dense'``, and under ``'sparse'`` if the model is sparse; backbone
        first, then in the model's order.
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
