"""What a sparse backbone kept, reported beside the host's metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric

from mmdyn.registry import METRICS

KEY = 'kept_fractions'
METRIC = 'mmdyn.KeptFraction'


@METRICS.register_module()
class KeptFraction(BaseMetric):
    """Mean over images of the fraction of locations that each predictor kept.

    Reads the entry ``kept_fractions`` that our adapters give the predicted
    samples: one number in [0, 1] per predictor. Reports ``keep_ratio_0``,
    ``keep_ratio_1``, ....

    Args:
        **kwargs: of mmengine's ``BaseMetric``.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Collects one batch's fractions.

        Args:
            data_batch: Not used.
            data_samples: The predicted samples as dicts.
        """
        self.results += [sample[KEY] for sample in data_samples if KEY in sample]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Averages over the images.

        Args:
            results: The fractions of each image.
        """
        return {
            f'keep_ratio_{number}': round(float(mean), 4)
            for number, mean in enumerate(np.mean(results, axis=0))
        }


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
