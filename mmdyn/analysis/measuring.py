"""Time, multiply-adds and memory of contenders that are measured in one run."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from mmdyn.analysis.counting import count_macs

Name = TypeVar('Name', bound=Hashable)
Run = Callable[[Any], Any]
"""What is measured, a function of an input."""


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

    def rounded(self) -> dict[str, float]:
        """As JSON holds it."""
        return {name: round(getattr(self, name), 4) for name in ('median', 'lower', 'upper')}

    def text(self, form: str) -> str:
        """As tables show it, ``'10.1 [9.8, 10.6]'``."""
        median, lower, upper = map(form.format, (self.median, self.lower, self.upper))
        return f'{median} [{lower}, {upper}]'


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
        contenders: by name.
        inputs: at least one; taken in turns.
        rounds: measured calls of each, at least.
        seconds: more rounds are run until so many seconds have been measured.
        warmup: calls of each before that, in the order given.
        seed: of the order.
        grad: whether the contenders train; else they run in inference mode.
        on_call: called after every call, for progress.

    Raises:
        ValueError: if there is nothing to time.
    """
    if not contenders or not inputs or rounds < 1:
        raise ValueError(
            f'nothing to time: {len(contenders)} contenders, {len(inputs)} inputs and {rounds} '
            'rounds; give at least one of each'
        )
    shuffle = random.Random(seed).shuffle
    order = list(contenders)
    samples: dict[Name, list[float]] = {name: [] for name in contenders}
    start, done = time.perf_counter(), -warmup
    with torch.inference_mode(not grad):
        while done < rounds or time.perf_counter() - start < seconds:
            if done == 0:
                start = time.perf_counter()
            if done >= 0:
                shuffle(order)
            for name in order:
                samples[name].append(_milliseconds(contenders[name], inputs[done % len(inputs)]))
                on_call()
            done += 1
    return {
        name: Latency(**vars(Spread.of(all_[warmup:])), samples=tuple(all_[warmup:]), first=all_[0])
        for name, all_ in samples.items()
    }


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


def memory_method(device: str | torch.device) -> str:
    """What :func:`peak_memory` measures on a device, for reports."""
    if torch.device(device).type == 'cuda':
        return "the peak of CUDA's allocation counter"
    return (
        "the peak of torch's CPU allocations as its profiler records them (scratch memory inside "
        'oneDNN and BLAS does not show)'
    )


def peak_memory(run: Callable[[], Any], device: str | torch.device = 'cpu') -> int:
    """Bytes that a call holds at its peak, beyond what was there before it.

    So a model's weights and its input don't count, what a forward computes does. Runs once, in
    the caller's gradient mode; see ``memory_method`` for what is measured.
    """
    if torch.device(device).type != 'cuda':
        return _peak_of_cpu(run)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_cpu(run: Callable[[], Any]) -> int:
    # A torch built for CUDA would report an error on stderr where there is no GPU to profile.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the profiler, about cycles that aren't used here
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    # The trace is the only public place where the running total stands.
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())['traceEvents']
    memory = [event for event in events if event.get('name') == '[memory]']
    found = [event['args'] for event in sorted(memory, key=lambda event: event['ts'])]
    found = [change for change in found if change['Device Type'] == 0]
    if not found:
        return 0
    # The running total is the process': what earlier calls left alive is in it.
    before = found[0]['Total Allocated'] - found[0]['Bytes']
    return max(change['Total Allocated'] for change in found) - before


@dataclass(frozen=True)
class Measurement:
    """What one contender took.

    Attributes:
        latency: milliseconds of a call.
        macs: multiply-adds of a call, the mean over the inputs they were counted on.
        peak_bytes: see :func:`peak_memory`; None = not measured.
    """

    latency: Latency
    macs: float
    peak_bytes: int | None = None

    def speedup(self, reference: Measurement) -> Spread:
        """How many times as fast as a reference it is."""
        return speedup(self.latency, reference.latency)

    def realised(self, reference: Measurement) -> Spread:
        """What becomes of a saving: speed-up over ratio of multiply-adds, 1 = all of it."""
        promised, gained = reference.macs / self.macs, self.speedup(reference)
        return Spread(gained.median / promised, gained.lower / promised, gained.upper / promised)

    def as_json(self, reference: Measurement | None = None) -> dict[str, Any]:
        """Rounded figures: ms, 10⁹ multiply-adds, MiB; against a reference if there is one."""
        figures: dict[str, Any] = dict(
            ms=self.latency.rounded(),
            first_ms=round(self.latency.first, 3),
            rounds=len(self.latency.samples),
            gmacs=round(self.macs / 1e9, 6),
        )
        if self.peak_bytes is not None:
            figures['peak_mib'] = round(self.peak_bytes / 2**20, 3)
        if reference is not None:
            figures['speedup'] = self.speedup(reference).rounded()
            figures['realised'] = self.realised(reference).rounded()
        return figures


def count_all(
    contenders: Mapping[Name, Run],
    inputs: Sequence[Any],
    on_call: Callable[[], Any] = lambda: None,
) -> dict[Name, float]:
    """Multiply-adds of each contender's forward, the mean over inputs, at least one."""
    found = dict.fromkeys(contenders, 0.0)
    for name, run in contenders.items():
        for item in inputs:
            found[name] += count_macs(lambda run=run, item=item: run(item)) / len(inputs)
            on_call()
    return found


def measure(
    contenders: Mapping[Name, Run],
    inputs: Sequence[Any],
    *,
    macs: Mapping[Name, float] | None = None,
    memory: bool = True,
    device: str | torch.device = 'cpu',
    grad: bool = False,
    on_call: Callable[[], Any] = lambda: None,
    **timing: Any,
) -> dict[Name, Measurement]:
    """Measure contenders against each other.

    Args:
        contenders, inputs, grad, on_call: see :func:`measure_latency`.
        macs: of those that have been counted already, see :func:`count_all`: of a compiled model
            they must be counted before it is compiled.
        memory: whether peak memory is measured, on the first input.
        device: where they compute.
        **timing: the other arguments of :func:`measure_latency`.
    """
    counted = dict(macs or {})
    new = {name: run for name, run in contenders.items() if name not in counted}
    counted |= count_all(new, inputs, on_call)
    times = measure_latency(contenders, inputs, grad=grad, on_call=on_call, **timing)
    peaks: dict[Name, int] = {}
    with torch.inference_mode(not grad):
        for name, run in contenders.items() if memory else ():
            peaks[name] = peak_memory(lambda run=run: run(inputs[0]), device)
    return {name: Measurement(times[name], counted[name], peaks.get(name)) for name in contenders}


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch compute on so many CPU threads inside the block; None = as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
