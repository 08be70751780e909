"""Drawings of predictions, decisions and measurements."""

from mmdyn.visualization.hook import DecisionVisualizationHook
from mmdyn.visualization.inference import draw, predicted, to_array

__all__ = ['DecisionVisualizationHook', 'draw', 'predicted', 'to_array']
