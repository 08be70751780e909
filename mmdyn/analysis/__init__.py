"""Cost of models: functions that the tools print and plot."""

from mmdyn.analysis.counting import MacCount, count_executed, count_macs
from mmdyn.analysis.measuring import Latency, Spread, measure_latency, peak_memory, speedup

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
