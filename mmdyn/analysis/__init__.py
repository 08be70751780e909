"""What a model costs: functions that the tools print and plot."""

from mmdyn.analysis.complexity import count_macs
from mmdyn.analysis.latency import Latency, measure_latency

__all__ = ['Latency', 'count_macs', 'measure_latency']
