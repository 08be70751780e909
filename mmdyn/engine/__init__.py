"""Training and testing: hooks, checks of configs and data, logic of the tools.

Importing this package registers hooks, metrics and an optimizer constructor; other modules
(``prepare``, ``config``, ``data_check`` ...) are imported by name.
"""

from mmdyn.engine.boundary import BoundaryFScore
from mmdyn.engine.hooks import (
    CheckpointHook,
    FitFastPathsHook,
    HoldPretrainedHook,
    KeepRatioHook,
    RngStateHook,
    SyncRunningStatsHook,
    TrainingPolicyHook,
)
from mmdyn.engine.metrics import Accuracy, KeptFraction
from mmdyn.engine.optimizer import FinetuneOptimWrapperConstructor

__all__ = [
    'Accuracy',
    'BoundaryFScore',
    'CheckpointHook',
    'FinetuneOptimWrapperConstructor',
    'FitFastPathsHook',
    'HoldPretrainedHook',
    'KeepRatioHook',
    'KeptFraction',
    'RngStateHook',
    'SyncRunningStatsHook',
    'TrainingPolicyHook',
]
