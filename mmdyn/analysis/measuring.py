"""Time, multiply-adds and memory of several contenders in one run: what benchmarks are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mmdyn.analysis.complexity import count_macs
from mmdyn.analysis.latency import Latency, Run, Spread, measure_latency, speedup
from mmdyn.analysis.memory import peak_memory

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
"""By the name that users give."""


@dataclass(frozen=True)
class Measurement:
    """What one contender took.

    Attributes:
        latency: milliseconds of a call.
        macs: multiply-adds of a call on the first input.
        peak_bytes: see :func:`mmdyn.analysis.peak_memory`.
    """

    latency: Latency
    macs: float
    peak_bytes: int

    def as_json(self, reference: Measurement | None = None) -> dict[str, Any]:
        """Rounded figures: ms, 10⁹ multiply-adds, MiB; against a reference if there is one."""
        figures = dict(
            ms=rounded(self.latency),
            first_ms=round(self.latency.first, 3),
            rounds=len(self.latency.samples),
            gmacs=round(self.macs / 1e9, 6),
            peak_mib=round(self.peak_bytes / 2**20, 3),
        )
        if reference is not None:
            figures['speedup'] = rounded(speedup(self.latency, reference.latency))
            figures['realised'] = rounded(realised(self, reference))
        return figures


def rounded(spread: Spread) -> dict[str, float]:
    """Median and quartiles, rounded."""
    return {
        name: round(value, 4)
        for name, value in asdict(spread).items()
        if name in ('median', 'lower', 'upper')
    }


def realised(of: Measurement, reference: Measurement) -> Spread:
    """What becomes of a saving: the speed-up over the ratio of multiply-adds, 1 = all of it."""
    promised = reference.macs / of.macs
    gained = speedup(of.latency, reference.latency)
    return Spread(gained.median / promised, gained.lower / promised, gained.upper / promised)


def measure(
    contenders: Mapping[str, Run],
    inputs: Sequence[Any],
    *,
    macs: Mapping[str, float] | None = None,
    device: str | torch.device = 'cpu',
    grad: bool = False,
    on_call: Callable[[], Any] = lambda: None,
    **timing: Any,
) -> dict[str, Measurement]:
    """Measure contenders against each other.

    Args:
        contenders: by name, a function of an input.
        inputs: at least one; see :func:`mmdyn.analysis.measure_latency`.
        macs: of each contender, where they have been counted already: those of a
            compiled model must be counted before it is compiled.
        device: where they compute.
        grad: whether they train.
        on_call: told after every timed call, for progress.
        **timing: ``rounds``, ``seconds``, ``warmup``, ``seed`` of ``measure_latency``.
    """
    if macs is None:
        macs = count_all_macs(contenders, inputs[0])
    times = measure_latency(contenders, inputs, grad=grad, on_call=on_call, **timing)
    with torch.inference_mode(not grad):
        peaks = {
            name: peak_memory(lambda run=run: run(inputs[0]), device)
            for name, run in contenders.items()
        }
    return {name: Measurement(times[name], macs[name], peaks[name]) for name in contenders}


def count_all_macs(contenders: Mapping[str, Run], item: Any) -> dict[str, int]:
    """Multiply-adds of each contender's forward on an input."""
    return {name: count_macs(lambda run=run: run(item)) for name, run in contenders.items()}


def in_dtype(run: Run, dtype: str, device: str | torch.device = 'cpu') -> Run:
    """Run under autocast, as the hosts do with mixed precision; ``'fp32'`` is without.

    Args:
        run: what is called.
        dtype: a key of :data:`DTYPES`.
        device: where it computes.
    """
    if dtype == 'fp32':
        return run

    def run_mixed(item: Any) -> Any:
        with torch.autocast(torch.device(device).type, DTYPES[dtype]):
            return run(item)

    return run_mixed


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch compute on so many CPU threads inside the block; None = as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
