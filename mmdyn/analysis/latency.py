"""Wall-clock comparison of several variants in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: median, first and third quartile, and every sample."""

    median: float
    lower: float
    upper: float
    samples: tuple[float, ...]


def measure_latency(
    variants: Mapping[str, Callable[[int], Any]],
    rounds: int,
    warmup: int = 3,
    on_call: Callable[[], Any] = lambda: None,
) -> dict[str, Latency]:
    """Time variants against each other, without gradients.

    In every round each variant runs once, so that a machine that slows down or
    speeds up does so for all of them.

    Args:
        variants: by name, a function of the round's number (from 0; pick the
            input by it).
        rounds: measured calls of each variant, at least 1.
        warmup: calls of each before that.
        on_call: told after every call, for progress.

    Raises:
        ValueError: if ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f'rounds must be at least 1, got {rounds}')
    samples: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode():
        for index in range(-warmup, rounds):
            for name, run in variants.items():
                start = time.perf_counter()
                run(index % rounds)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if index >= 0:
                    samples[name].append(1000 * (time.perf_counter() - start))
                on_call()
    return {name: _summary(values) for name, values in samples.items()}


def _summary(values: list[float]) -> Latency:
    lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
    return Latency(median=median, lower=lower, upper=upper, samples=tuple(values))
