"""Training with sharded parameters (FSDP), by mmengine's FlexibleRunner.

A config asks for it with ``runner_type='FlexibleRunner'`` and
``strategy=dict(type='FSDPStrategy', ...)``. mmengine builds the optimizer after the parameters were
flattened and cut into shards, so what goes by a parameter's shape, or by the gradients of all of
them, silently does something else: that is refused here.
"""

from typing import Any

from mmengine._strategy import FSDPStrategy as HostStrategy
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmdyn.registry import FUNCTIONS, STRATEGIES

_RUNNER, _STRATEGY = 'FlexibleRunner', 'FSDPStrategy'
_ELSEWHERE = 'take the config without FSDP, or'


@STRATEGIES.register_module()
class FSDPStrategy(HostStrategy):
    """mmengine's, which can resume too.

    :func:`prepare_sharding` puts it in place of mmengine's.
    """

    def optim_state_dict(self) -> dict[str, Any]:
        """The whole optimizer's state, and what its wrapper adds (a loss scale, the base rate)."""
        return {**_without_optimizer(self.optim_wrapper.state_dict()), **super().optim_state_dict()}

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the optimizer its state back, to each process its shard.

        mmengine passes the arguments in the order of torch 2.0; since 2.1 the model comes first.

        Args:
            state_dict: What :meth:`optim_state_dict` returned.

        Raises:
            ValueError: If it is of a training without FSDP.
        """
        if any(isinstance(key, int) for key in state_dict['state']):
            raise ValueError(
                'the checkpoint to resume was written without FSDP, whose optimizers go by other '
                'names: resume it without FSDP too, or start from its weights (load_from)'
            )
        shard = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict({**_without_optimizer(state_dict), **shard})


def _without_optimizer(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in ('state', 'param_groups')}


def prepare_sharding(cfg: Config) -> str | None:
    """Checks and completes a training config that asks for FSDP; leaves others alone.

    Whole checkpoints are written, as without sharding. Without an accelerator, the processes
    shard on the CPU.

    Args:
        cfg: The config with ``launcher`` set, edited in place.

    Returns:
        A line for the log.

    Raises:
        ValueError: If something else in the config does not go with it.
    """
    strategy = cfg.get('strategy') or {}
    if strategy and _name(cfg.get('runner_type')) != _RUNNER:
        raise ValueError(
            f"strategy is read by runner_type='{_RUNNER}' alone: set that too, or leave it out"
        )
    if cfg.get('runner_type') is not None:
        # FlexibleRunner takes it from the config without a default of its own.
        cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))
    if _name(strategy.get('type')) != _STRATEGY:
        return None
    if cfg.get('launcher', 'none') == 'none':
        raise ValueError(
            f'{_STRATEGY} shards over processes: start it with tools/dist_train.sh or '
            f'tools/slurm_train.sh, or {_ELSEWHERE} add --cfg-options runner_type=Runner '
            'strategy=None'
        )
    strategy.type = f'mmdyn.{_STRATEGY}'
    if not strategy.get('model_wrapper'):
        strategy.model_wrapper = dict(type='MMFullyShardedDataParallel')
    _check_wrapper(strategy.model_wrapper, cfg.get('model') or {})
    _check_optimizer(cfg.get('optim_wrapper') or {})
    if strategy.setdefault('state_dict_cfg', 'full') != 'full':
        raise ValueError(
            f'{_STRATEGY}.state_dict_cfg={strategy.state_dict_cfg!r} writes one file per process, '
            "which tools/test.py and --resume can't read: leave it out, or set it to 'full'"
        )
    if get_device() == 'cpu':
        strategy.model_wrapper.device_id = 'cpu'
        strategy.state_dict_cfg = _whole_on_the_cpu()
    return 'parameters, gradients and optimizer state are sharded over the processes (FSDP)'


def without_sharding(cfg: Config) -> str | None:
    """Has an evaluation run by the usual Runner: a checkpoint holds the whole model.

    Args:
        cfg: The config, edited in place.

    Returns:
        A line for the log if something was changed.
    """
    if _name((cfg.get('strategy') or {}).get('type')) != _STRATEGY:
        return None
    cfg.pop('strategy')
    cfg.pop('runner_type', None)
    return 'FSDP is for training: this evaluation has the whole model in each process'


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: every block of a Swin or ConvNeXt is gathered by itself.

    The rest of the model is one more unit. Not by size: modules whose methods a host calls
    otherwise than through ``forward`` must not be units.

    Args:
        module: A module of the model.
        recurse: Whether FSDP asks if to look inside.
        nonwrapped_numel: How many of its numbers are in no unit yet.
    """
    from mmdyn.models.backbones.base import StageBlock

    return recurse or isinstance(module, StageBlock)


def _check_wrapper(wrapper: dict[str, Any], model: dict[str, Any]) -> None:
    if not wrapper.get('use_orig_params', True):
        raise ValueError(
            'strategy.model_wrapper.use_orig_params=False hides the names by which rates and '
            'weight decay are set: leave it out'
        )
    if wrapper.get('mixed_precision') is not None:
        raise ValueError(
            'strategy.model_wrapper.mixed_precision casts the images and decisions too, which a '
            'teacher in full precision takes amiss: leave it out and add --amp'
        )
    sliding = (model.get('test_cfg') or {}).get('mode') == 'slide'
    if sliding and wrapper.get('auto_wrap_policy') is not None:
        raise ValueError(
            "model.test_cfg.mode='slide' looks at another number of windows in each process, which "
            'would wait for each other for ever: leave out strategy.model_wrapper.auto_wrap_policy '
            "(the model is one unit then), or set model.test_cfg.mode='whole'"
        )


def _check_optimizer(optim_wrapper: dict[str, Any]) -> None:
    constructor = _name(optim_wrapper.get('constructor'))
    if constructor.endswith('DecayOptimizerConstructor'):
        raise ValueError(
            f'optim_wrapper.constructor={constructor!r} takes parameters of one dimension for '
            f'biases, which all are once they are sharded: {_ELSEWHERE} another constructor'
        )
    if 'flat_decay_mult' in (optim_wrapper.get('paramwise_cfg') or {}):
        raise ValueError(
            'optim_wrapper.paramwise_cfg.flat_decay_mult is for parameters of one dimension, which '
            f'all are once they are sharded: {_ELSEWHERE} norm_decay_mult and bias_decay_mult'
        )
    clip = optim_wrapper.get('clip_grad') or {}
    if clip and clip.get('type', 'norm') == 'norm':
        raise ValueError(
            'optim_wrapper.clip_grad: each process would clip by the norm of its own shard: set it '
            f"to None or clip by value (type='value'), or {_ELSEWHERE[:-4]}"
        )


def _whole_on_the_cpu() -> dict[str, Any]:
    # 'full' also asks to offload to the CPU, which on a CPU frees what is about to be written:
    # the process dies of a segmentation fault (torch 2.10, FlatParamHandle.to_cpu).
    options = dict(rank0_only=True, offload_to_cpu=False)
    return dict(
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig', **options),
        optim_state_dict_config=dict(type='FullOptimStateDictConfig', **options),
    )


def _name(kind: Any) -> str:
    """A type's name without its scope, '' for None."""
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]
