"""What a model costs: functions that the tools print and plot."""

from mmdyn.analysis.complexity import MacCount, count_executed, count_macs
from mmdyn.analysis.latency import Latency, Spread, measure_latency, speedup
from mmdyn.analysis.memory import peak_memory

__all__ = [
    'Latency',
    'MacCount',
    'Spread',
    'count_executed',
    'count_macs',
    'measure_latency',
    'peak_memory',
    'speedup',
]
