"""Reports kept fractions next to the host's metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric

from mmdyn.config_parts import class_of, type_name
from mmdyn.registry import METRICS

KEY = 'kept_fractions'
TILES = 'kept_tiles'


@METRICS.register_module()
class KeptFraction(BaseMetric):
    """Mean over images of the fraction of locations kept by each predictor.

    Reads the entry ``kept_fractions`` that our adapters add to predicted samples, one number in
    [0, 1] per predictor. Reports ``keep_ratio_0``, ``keep_ratio_1``, ..., and ``tile_ratio`` from
    ``kept_tiles`` if head or neck choose tiles.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Collect the fractions of a batch of predicted samples."""
        found = ({k: sample[k] for k in (KEY, TILES) if k in sample} for sample in data_samples)
        self.results += filter(None, found)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over the images."""
        kept = [result[KEY] for result in results if KEY in result]
        means = np.mean(kept, axis=0) if kept else ()
        fractions = {f'keep_ratio_{number}': float(mean) for number, mean in enumerate(means)}
        tiles = [result[TILES] for result in results if TILES in result]
        if tiles:
            fractions['tile_ratio'] = float(np.mean(tiles))
        return {name: round(mean, 4) for name, mean in fractions.items()}


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of pictures whose class is among the k most probable, in per cent: ``accuracy/top1``.

    Args:
        topk: values of k.
        **kwargs: of mmengine's ``BaseMetric``.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Collect the rank of the true class of a batch of predicted samples, 0 = first."""
        for sample in data_samples:
            scores = sample['pred_score']
            # Ties and NaN count against the model.
            better = ~(scores < scores[sample['gt_label']])
            self.results.append(int(better.sum()) - 1)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over the images."""
        ranks = np.array(results)
        return {f'top{k}': round(100 * float((ranks < k).mean()), 2) for k in self.topk}


def add_kept_fraction(cfg: Config, evaluator: str) -> None:
    """Add the metric to 'val_evaluator' or 'test_evaluator' if the model is one of mmdyn's."""
    kind = (cfg.get('model') or {}).get('type')
    classes = getattr(class_of(kind, cfg.get('default_scope')), '__mro__', ())
    ours = any(cls.__module__.startswith('mmdyn.') for cls in classes)
    if not ours and not str(kind).startswith('mmdyn.'):
        return
    names = {type_name(metric) for metric in metrics_of(cfg.get(evaluator))}
    if names and 'KeptFraction' not in names:
        add_metric(cfg, evaluator, dict(type='mmdyn.KeptFraction'))


def metrics_of(evaluator: Any) -> list[dict]:
    """Metrics of an evaluator's config: one metric, a list, a dict with ``metrics``, or None."""
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator['metrics']
    if isinstance(evaluator, list | tuple):
        return list(evaluator)
    return [evaluator] if evaluator else []


def add_metric(cfg: Config, evaluator: str, metric: dict) -> bool:
    """Add a metric to a config's 'val_evaluator' or 'test_evaluator', in place.

    Returns:
        False if that is impossible: in mmdet's ``MultiDatasetsEvaluator`` each metric belongs to a
        data set.
    """
    given = cfg[evaluator]
    metrics = [*metrics_of(given), metric]
    if not (isinstance(given, dict) and 'metrics' in given):
        cfg[evaluator] = metrics
    elif type_name(given) in ('', 'Evaluator'):
        given['metrics'] = metrics
    else:
        return False
    return True
