"""Wall-clock comparison of several contenders in one run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

Name = TypeVar('Name', bound=Hashable)
Run = Callable[[Any], Any]


@dataclass(frozen=True)
class Spread:
    """Median, first and third quartile of measured values."""

    median: float
    lower: float
    upper: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of some values, at least one."""
        lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
        return Spread(median, lower, upper)


@dataclass(frozen=True)
class Latency(Spread):
    """Milliseconds of one call.

    Attributes:
        samples: one per round.
        first: of the very first call, with compilation and all else that is done once.
    """

    samples: tuple[float, ...]
    first: float


def speedup(of: Latency, reference: Latency) -> Spread:
    """How many times as fast as a reference something is, from each round's ratio.

    What slows the machine down for a round slows both, so the ratios spread less than
    the times they are made of.

    Args:
        of, reference: of one :func:`measure_latency`.

    Raises:
        ValueError: if they are not of the same rounds.
    """
    if len(of.samples) != len(reference.samples):
        raise ValueError(
            f'a speed-up compares times of the same rounds, got {len(of.samples)} and '
            f'{len(reference.samples)}'
        )
    pairs = zip(reference.samples, of.samples, strict=True)
    return Spread.of([theirs / ours for theirs, ours in pairs])


def measure_latency(
    contenders: Mapping[Name, Run],
    inputs: Sequence[Any],
    *,
    rounds: int = 30,
    seconds: float = 0.0,
    warmup: int = 3,
    seed: int = 0,
    grad: bool = False,
    on_call: Callable[[], Any] = lambda: None,
) -> dict[Name, Latency]:
    """Time contenders against each other.

    In every round each contender runs once on the same input, the next round takes
    the next input; so a machine that slows down or speeds up does so for all. Their
    order is drawn anew for each round: none always finds the caches as another left
    them.

    Args:
        contenders: by name, a function of an input.
        inputs: at least one; taken in turns.
        rounds: measured calls of each, at least.
        seconds: more rounds are run until so many seconds have been measured.
        warmup: calls of each before that, in the order given.
        seed: of the order.
        grad: whether the contenders train; else they run in inference mode.
        on_call: told after every call, for progress.

    Raises:
        ValueError: if there is no contender or input, or ``rounds`` is below 1.
    """
    if not contenders or not inputs:
        raise ValueError(
            f'nothing to time: {len(contenders)} contenders and {len(inputs)} inputs; give at '
            'least one of each'
        )
    if rounds < 1:
        raise ValueError(f'rounds must be at least 1, got {rounds}')
    shuffle = random.Random(seed).shuffle
    order = list(contenders)
    first: dict[Name, float] = {}
    samples: dict[Name, list[float]] = {name: [] for name in contenders}

    def timed(name: Name, index: int) -> float:
        taken = _milliseconds(contenders[name], inputs[index % len(inputs)])
        first.setdefault(name, taken)
        on_call()
        return taken

    with torch.inference_mode(not grad):
        for index in range(warmup):
            for name in order:
                timed(name, index)
        start, done = time.perf_counter(), 0
        while done < rounds or time.perf_counter() - start < seconds:
            shuffle(order)
            for name in order:
                samples[name].append(timed(name, done))
            done += 1
    return {name: _latency(values, first[name]) for name, values in samples.items()}


def _milliseconds(run: Run, item: Any) -> float:
    _wait_for_gpu()
    start = time.perf_counter()
    run(item)
    _wait_for_gpu()
    return 1000 * (time.perf_counter() - start)


def _wait_for_gpu() -> None:
    # Not initialised means that nothing runs there.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _latency(samples: Sequence[float], first: float) -> Latency:
    spread = Spread.of(samples)
    return Latency(spread.median, spread.lower, spread.upper, tuple(samples), first)
