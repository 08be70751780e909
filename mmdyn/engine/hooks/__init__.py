"""Hooks that configs name with the prefix ``mmdyn.``."""

from mmdyn.engine.hooks.checkpoint import CheckpointHook
from mmdyn.engine.hooks.hold_pretrained import HoldPretrainedHook
from mmdyn.engine.hooks.keep_ratio import KeepRatioHook
from mmdyn.engine.hooks.rng_state import RngStateHook
from mmdyn.engine.hooks.sync_running_stats import SyncRunningStatsHook
from mmdyn.engine.hooks.training_policy import TrainingPolicyHook

__all__ = [
    'CheckpointHook',
    'HoldPretrainedHook',
    'KeepRatioHook',
    'RngStateHook',
    'SyncRunningStatsHook',
    'TrainingPolicyHook',
]
