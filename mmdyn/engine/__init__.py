"""What surrounds the model in a run: hooks, checks before it, the tools' logic.

Importing this package registers hooks and metrics; the tools import the other modules
(``prepare``, ``config``, ``data_check``, ``checkpoint`` ...) by name.
"""

from mmdyn.engine.hooks import RngStateHook, SyncRunningStatsHook, TrainingPolicyHook
from mmdyn.engine.metrics import KeptFraction

__all__ = ['KeptFraction', 'RngStateHook', 'SyncRunningStatsHook', 'TrainingPolicyHook']
