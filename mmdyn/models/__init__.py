"""Backbones, heads, necks, losses and host adapters, registered for configs."""

from mmdyn.models import adapters, heads, losses, necks, policies
from mmdyn.models.backbones import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.classifier import DynamicClassifier
from mmdyn.models.classifier_preprocessor import ClassifierPreprocessor

__all__ = [
    'ClassifierPreprocessor',
    'DynamicClassifier',
    'DynamicConvNeXt',
    'DynamicSwin',
    'DynamicViT',
    'adapters',
    'heads',
    'losses',
    'necks',
    'policies',
]
