"""SyncRunningStatsHook: equal batch-norm statistics on every rank."""

from mmengine.dist import all_reduce_params, get_world_size
from mmengine.hooks import Hook

from mmdyn.registry import HOOKS


@HOOKS.register_module()
class SyncRunningStatsHook(Hook):
    """Averages floating-point buffers of modules in training mode over ranks, every iteration.

    For distributed training on CPUs, where SyncBN has no kernel and is replaced by BN: each rank
    normalises by its own batch, but running statistics are averaged.
    """

    # Before checkpoints are written.
    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Average the buffers."""
        # Buffers of frozen modules are equal already, and averaging them may round.
        training = (module for module in runner.model.modules() if module.training)
        buffers = [b for m in training for b in m.buffers(recurse=False) if b.is_floating_point()]
        if get_world_size() > 1 and buffers:
            all_reduce_params(buffers, op='mean')
