"""What a sparse backbone kept, reported beside the host's metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric

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
    """Adds the metric to an evaluator of a config whose model reports it.

    Args:
        cfg: The config.
        evaluator: 'val_evaluator' or 'test_evaluator'.
    """
    kind = (cfg.get('model') or {}).get('type')
    metrics = cfg.get(evaluator)
    if not metrics or not (isinstance(kind, str) and kind.startswith('mmdyn.')):
        return
    metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    if not any(metric.get('type') == METRIC for metric in metrics):
        cfg[evaluator] = [*metrics, dict(type=METRIC)]
