"""Models to be called from Python."""

from mmdyn.apis.inference import Choice, Inference, Instance
from mmdyn.apis.inferencer import DynamicInferencer
from mmdyn.apis.sources import Picture, Pictures

__all__ = ['Choice', 'DynamicInferencer', 'Inference', 'Instance', 'Picture', 'Pictures']
