"""What a model costs: functions that the tools print and plot."""

from mmdyn.analysis.complexity import MacCount, count_executed, count_macs
from mmdyn.analysis.latency import Latency, measure_latency

__all__ = ['Latency', 'MacCount', 'count_executed', 'count_macs', 'measure_latency']
