"""Time, multiply-adds and memory of several functions, measured together."""

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
"""A function to measure, of one input."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of measured values."""

    median: float
    lower: float
    upper: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Spread of at least one value."""
        lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
        return Spread(median, lower, upper)

    def rounded(self) -> dict[str, float]:
        """Convert to a dict for JSON."""
        return {name: round(getattr(self, name), 4) for name in ('median', 'lower', 'upper')}

    def text(self, form: str) -> str:
        """Format for tables, ``'10.1 [9.8, 10.6]'``."""
        median, lower, upper = map(form.format, (self.median, self.lower, self.upper))
        return f'{median} [{lower}, {upper}]'


@dataclass(frozen=True)
class Latency(Spread):
    """Milliseconds per call.

    Attributes:
        samples: one per round.
        first: the first call, including compilation and other one-time work.
    """

    samples: tuple[float, ...]
    first: float


def speedup(of: Latency, reference: Latency) -> Spread:
    """Speed-up over a reference, from the ratio in each round.

    Slow-downs of the machine affect both in a round, so the ratios vary less than the times.

    Raises:
        ValueError: if the numbers of rounds differ.
    """
    if len(of.samples) != len(reference.samples):
        raise ValueError(
            f'a speed-up needs times of the same rounds, got {len(of.samples)} and '
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
    """Time functions against each other, in interleaved rounds.

    In every round each function runs once on the same input, so changes of the machine's speed
    affect all. The order is shuffled in each round, so that cache effects average out.

    Args:
        contenders: functions by name.
        inputs: at least one; used in turn.
        rounds: minimum number of timed calls of each.
        seconds: minimum time; further rounds are run until then.
        warmup: untimed calls of each before that, in the given order.
        seed: of the order.
        grad: whether the functions need gradients; else they run in inference mode.
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
    # If not initialised, nothing runs there.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def memory_method(device: str | torch.device) -> str:
    """Description of the method of :func:`peak_memory` on a device, for reports."""
    if torch.device(device).type == 'cuda':
        return "the peak of CUDA's allocation counter"
    return (
        "the peak of torch's CPU allocations as its profiler records them (scratch memory inside "
        'oneDNN and BLAS does not show)'
    )


def peak_memory(run: Callable[[], Any], device: str | torch.device = 'cpu') -> int:
    """Peak memory of a call in bytes, beyond what was allocated before.

    This excludes a model's weights and input. Runs once, in the caller's gradient mode; see
    ``memory_method``.
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
    # Suppresses an error message of CUDA builds of torch without a GPU.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the profiler, about unused cycles
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    # Running totals are public in the trace only.
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())['traceEvents']
    memory = [event for event in events if event.get('name') == '[memory]']
    found = [event['args'] for event in sorted(memory, key=lambda event: event['ts'])]
    found = [change for change in found if change['Device Type'] == 0]
    if not found:
        return 0
    # Totals are of the whole process, including earlier allocations.
    before = found[0]['Total Allocated'] - found[0]['Bytes']
    return max(change['Total Allocated'] for change in found) - before


@dataclass(frozen=True)
class Measurement:
    """Cost of a function.

    Attributes:
        latency: milliseconds per call.
        macs: multiply-adds per call, averaged over the inputs counted.
        peak_bytes: see :func:`peak_memory`; None = not measured.
    """

    latency: Latency
    macs: float
    peak_bytes: int | None = None

    def speedup(self, reference: Measurement) -> Spread:
        """Speed-up over a reference."""
        return speedup(self.latency, reference.latency)

    def realised(self, reference: Measurement) -> Spread:
        """Speed-up over the ratio of multiply-adds; 1 = the saving is fully realised."""
        promised, gained = reference.macs / self.macs, self.speedup(reference)
        return Spread(gained.median / promised, gained.lower / promised, gained.upper / promised)

    def as_json(self, reference: Measurement | None = None) -> dict[str, Any]:
        """Rounded figures (ms, 10⁹ multiply-adds, MiB), relative to a reference if given."""
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
    """Multiply-adds of each function, averaged over at least one input."""
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
    """Measure functions against each other.

    Args:
        contenders, inputs, grad, on_call: see :func:`measure_latency`.
        macs: known multiply-adds, see :func:`count_all`; those of compiled models must be counted
            before compilation.
        memory: whether to measure peak memory, on the first input.
        device: of the computation.
        **timing: further arguments of :func:`measure_latency`.
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
    """Set torch's number of CPU threads within the block; None = unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
