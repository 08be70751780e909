"""How much memory a call takes at its peak."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


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

    So a model's weights and its input don't count, what a forward computes does. See
    ``mmdyn.analysis.memory.memory_method`` for what is measured.

    Args:
        run: called once, in the caller's gradient mode.
        device: where it computes.
    """
    if torch.device(device).type == 'cuda':
        return _peak_of_cuda(run, torch.device(device))
    return _peak_of_cpu(run)


def _peak_of_cuda(run: Callable[[], Any], device: torch.device) -> int:
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
    found = sorted(
        (event for event in events if event.get('name') == '[memory]'), key=lambda one: one['ts']
    )
    found = [event['args'] for event in found if event['args']['Device Type'] == 0]
    if not found:
        return 0
    # The running total is the process': what earlier calls left alive is in it.
    before = found[0]['Total Allocated'] - found[0]['Bytes']
    return max(event['Total Allocated'] for event in found) - before
