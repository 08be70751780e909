"""Inference from Python."""

from mmdyn.apis.inferencer import DynamicInferencer
from mmdyn.apis.sources import Pictures
from mmdyn.engine.predictions import Inference, Instance
from mmdyn.engine.recording import Choice
from mmdyn.pictures import Picture

__all__ = ['Choice', 'DynamicInferencer', 'Inference', 'Instance', 'Picture', 'Pictures']
