"""What surrounds the model in a run: hooks, checks before it, the tools' logic.

Importing this package registers the hooks; the tools import the other modules
(``prepare``, ``config``, ``data_check``, ``checkpoint`` ...) by name.
"""

from mmdyn.engine.hooks import RngStateHook, SyncRunningStatsHook

__all__ = ['RngStateHook', 'SyncRunningStatsHook']
