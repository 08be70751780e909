"""Hooks for configs, with the prefix ``mmdyn.``."""

from mmdyn.engine.hooks.checkpoint import CheckpointHook
from mmdyn.engine.hooks.fit_fast_paths import FitFastPathsHook
from mmdyn.engine.hooks.rng_state import RngStateHook
from mmdyn.engine.hooks.schedules import HoldPretrainedHook, KeepRatioHook, TrainingPolicyHook
from mmdyn.engine.hooks.sync_running_stats import SyncRunningStatsHook

__all__ = [
    'CheckpointHook',
    'FitFastPathsHook',
    'HoldPretrainedHook',
    'KeepRatioHook',
    'RngStateHook',
    'SyncRunningStatsHook',
    'TrainingPolicyHook',
]
