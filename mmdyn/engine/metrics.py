"""What a sparse backbone kept, reported beside the host's metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric

from mmdyn.config_parts import model_class, type_name
from mmdyn.registry import METRICS

KEY = 'kept_fractions'
TILES = 'kept_tiles'
METRIC = 'mmdyn.KeptFraction'


@METRICS.register_module()
class KeptFraction(BaseMetric):
    """Mean over images of the fraction of locations that each predictor kept.

    Reads the entry ``kept_fractions`` that our adapters give the predicted
    samples: one number in [0, 1] per predictor. Reports ``keep_ratio_0``,
    ``keep_ratio_1``, ..., and ``tile_ratio`` from ``kept_tiles``, if head or neck
    choose tiles.

    Args:
        **kwargs: of mmengine's ``BaseMetric``.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Collects one batch's fractions.

        Args:
            data_batch: Not used.
            data_samples: The predicted samples as dicts.
        """
        kinds = (KEY, TILES)
        self.results += [
            {kind: sample[kind] for kind in kinds if kind in sample}
            for sample in data_samples
            if any(kind in sample for kind in kinds)
        ]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Averages over the images.

        Args:
            results: The fractions of each image.
        """
        kept = [result[KEY] for result in results if KEY in result]
        means = np.mean(kept, axis=0) if kept else ()
        fractions = {f'keep_ratio_{number}': float(mean) for number, mean in enumerate(means)}
        tiles = [result[TILES] for result in results if TILES in result]
        if tiles:
            fractions['tile_ratio'] = float(np.mean(tiles))
        return {name: round(mean, 4) for name, mean in fractions.items()}


def add_kept_fraction(cfg: Config, evaluator: str) -> None:
    """Adds the metric to an evaluator of a config whose model reports it, where it can be.

    Args:
        cfg: The config.
        evaluator: 'val_evaluator' or 'test_evaluator'.
    """
    kind = (cfg.get('model') or {}).get('type')
    classes = getattr(model_class(kind, cfg.get('default_scope')), '__mro__', ())
    ours = any(cls.__module__.startswith('mmdyn.') for cls in classes)
    if not ours and not str(kind).startswith('mmdyn.'):
        return
    metrics = metrics_of(cfg.get(evaluator))
    if metrics and not any(type_name(metric) == 'KeptFraction' for metric in metrics):
        add_metric(cfg, evaluator, dict(type=METRIC))


def metrics_of(evaluator: Any) -> list[dict]:
    """The metrics of an evaluator's config, in any of the forms that mmengine takes.

    Args:
        evaluator: A metric, a list of them, a dict with ``metrics``, or None.
    """
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator['metrics']
    if isinstance(evaluator, list | tuple):
        return list(evaluator)
    return [evaluator] if evaluator else []


def add_metric(cfg: Config, evaluator: str, metric: dict) -> bool:
    """Adds a metric to an evaluator of a config.

    Args:
        cfg: The config, edited in place.
        evaluator: 'val_evaluator' or 'test_evaluator'.
        metric: The metric's config.

    Returns:
        False if that can't be: each metric of mmdet's ``MultiDatasetsEvaluator`` belongs to a
        data set.
    """
    given = cfg[evaluator]
    metrics = [*metrics_of(given), metric]
    if not (isinstance(given, dict) and 'metrics' in given):
        cfg[evaluator] = metrics
        return True
    if type_name(given) in ('', 'Evaluator'):
        given['metrics'] = metrics
        return True
    return False
