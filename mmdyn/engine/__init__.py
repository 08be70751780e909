"""What surrounds the model in a run: hooks, checks before it, the tools' logic.

Importing this package registers hooks, metrics and an optimizer constructor; the tools import
the other modules (``prepare``, ``config``, ``data_check`` ...) by name.
"""

from mmdyn.engine.boundary import BoundaryFScore
from mmdyn.engine.hooks import (
    CheckpointHook,
    HoldPretrainedHook,
    KeepRatioHook,
    RngStateHook,
    SyncRunningStatsHook,
    TrainingPolicyHook,
)
from mmdyn.engine.metrics import KeptFraction
from mmdyn.engine.optimizer import FinetuneOptimWrapperConstructor

__all__ = [
    'BoundaryFScore',
    'CheckpointHook',
    'FinetuneOptimWrapperConstructor',
    'HoldPretrainedHook',
    'KeepRatioHook',
    'KeptFraction',
    'RngStateHook',
    'SyncRunningStatsHook',
    'TrainingPolicyHook',
]
