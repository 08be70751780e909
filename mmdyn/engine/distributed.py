"""Distributed runs on machines without an accelerator.

mmengine's launchers call ``torch.cuda.set_device`` and wrap the model for a GPU,
which raises without one. With the gloo group initialised beforehand mmengine
leaves it alone; what remains are the wrapper's ``device_ids`` and SyncBN, which
has no CPU kernel.
"""

import datetime
import math
import os
import subprocess

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from mmdyn.config_parts import parts, type_name

# What each launcher calls the global rank, the number of processes and the local rank.
_ENVIRONMENT = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
_HOW_TO_LAUNCH = dict(
    pytorch='start it with torchrun, as tools/dist_train.sh and tools/dist_test.sh do',
    slurm='start it with srun, as tools/slurm_train.sh does',
    mpi='start it with mpirun',
)
DEFAULT_TIMEOUT = 600
"""How long processes wait for each other, in seconds. Torch's own default over NCCL; over gloo it
would be half an hour."""

_STATS_HOOK = 'SyncRunningStatsHook'
# The last is torch's class, as pure-Python configs have it.
_SYNC_BN = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')
_DEFAULT_PORT = '29500'


def set_timeout(cfg: Config) -> float:
    """Bounds how long the processes of a distributed run wait for one that died or hangs.

    Args:
        cfg: The run's config, edited in place: ``env_cfg.dist_cfg.timeout``, in seconds, is
            set to ``DEFAULT_TIMEOUT`` unless it is there.

    Returns:
        The time in seconds.

    Raises:
        ValueError: If it is no positive number.
    """
    dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg') or dict(backend='nccl')
    timeout = dist_cfg.get('timeout', DEFAULT_TIMEOUT)
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float)
        or not 0 < timeout < math.inf
    ):
        raise ValueError(
            'env_cfg.dist_cfg.timeout, how long processes wait for each other, must be a positive '
            f'number of seconds, got {timeout!r}'
        )
    cfg.merge_from_dict({'env_cfg.dist_cfg': {**dist_cfg, 'timeout': timeout}})
    return timeout


def prepare_cpu_distributed(cfg: Config) -> str | None:
    """Makes a distributed run work without an accelerator; elsewhere bounds its waiting only.

    Sets how long processes wait for each other (:func:`set_timeout`). Without an accelerator, it
    also initialises the gloo process group from the launcher's environment and edits
    ``cfg`` in place: ``model_wrapper_cfg`` (what the user set in it stays),
    SyncBN becomes BN whose running statistics are averaged over the processes. To
    be called before the Runner is built.

    Args:
        cfg: The run's config with ``launcher`` set.

    Returns:
        A line for the log that tells what was done.

    Raises:
        ValueError: If the process was not started by the launcher it names.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return None
    check_launcher(launcher)
    timeout = set_timeout(cfg)
    if get_device() != 'cpu':
        return None
    init_gloo(launcher, timeout)
    use_cpu_wrapper(cfg)
    reverted = revert_sync_bn(cfg)
    if not any(type_name(hook) == _STATS_HOOK for hook in cfg.get('custom_hooks') or []):
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=f'mmdyn.{_STATS_HOOK}')]
    note = f'No accelerator found: {dist.get_world_size()} processes run on the CPU over gloo'
    return f'{note}; {reverted} SyncBN layer config(s) became BN.' if reverted else f'{note}.'


def check_launcher(launcher: str) -> None:
    """Checks that this process was started by the launcher.

    Args:
        launcher: 'pytorch', 'slurm' or 'mpi'.

    Raises:
        ValueError: If the launcher is unknown, or its environment is not there or not its.
    """
    if launcher not in _ENVIRONMENT:
        raise ValueError(f'launcher must be one of none, {", ".join(_ENVIRONMENT)}: {launcher!r}')
    missing = [name for name in _ENVIRONMENT[launcher][:2] if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher}: the environment variable(s) {", ".join(missing)} are not '
            f'set, so this process was not started by that launcher: '
            f'{_HOW_TO_LAUNCH[launcher]}, or leave out --launcher to run one process'
        )
    rank, size = (os.environ[name] for name in _ENVIRONMENT[launcher][:2])
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        names = ' and '.join(_ENVIRONMENT[launcher][:2])
        raise ValueError(
            f'--launcher {launcher}: the environment variables {names} are {rank!r} and {size!r}, '
            f'no number and count of processes: {_HOW_TO_LAUNCH[launcher]}'
        )


def is_first(launcher: str) -> bool:
    """Whether this is the first process of its run, or the only one; known from the environment.

    Args:
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
    """
    return launcher not in _ENVIRONMENT or os.environ.get(_ENVIRONMENT[launcher][0], '0') == '0'


def init_gloo(launcher: str, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Initialises the default process group with the gloo backend.

    Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT where the
    launcher does not. Does nothing if a group is there already.

    Args:
        launcher: 'pytorch', 'slurm' or 'mpi'.
        timeout: How long a collective may wait, in seconds.
    """
    if dist.is_initialized():
        return
    rank, world_size, local_rank = _ENVIRONMENT[launcher]
    os.environ['RANK'] = os.environ[rank]
    os.environ['WORLD_SIZE'] = os.environ[world_size]
    os.environ['LOCAL_RANK'] = os.environ.get(local_rank, '0')
    os.environ.setdefault('MASTER_PORT', _DEFAULT_PORT)
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _slurm_master() if launcher == 'slurm' else '127.0.0.1'
    dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))


def _slurm_master() -> str:
    """The first host of the job: where rank 0 runs."""
    nodes = os.environ['SLURM_NODELIST']
    hosts = subprocess.run(
        ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True
    )
    return hosts.stdout.split()[0]


def use_cpu_wrapper(cfg: Config) -> None:
    """Sets ``cfg.model_wrapper_cfg`` for DistributedDataParallel without device ids.

    What the user set there, and a top-level ``find_unused_parameters``, stay. A
    wrapper of another type is left as it is.

    Args:
        cfg: The config, edited in place.
    """
    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    if type_name(wrapper) == 'MMDistributedDataParallel':
        wrapper.setdefault('broadcast_buffers', False)
        # mmengine reads the top-level key only where there is no model_wrapper_cfg.
        wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))
        wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper


def revert_sync_bn(cfg: Config) -> int:
    """Replaces SyncBN by BN in the model's config.

    Args:
        cfg: The config, edited in place; ``sync_bn`` (mmengine's switch
            that converts BN to SyncBN) is turned off too.

    Returns:
        How many layer configs changed.
    """
    if cfg.get('sync_bn') is not None:
        cfg.sync_bn = None
    layers = [part for _, part in parts(cfg.get('model'), 'model') if type_name(part) in _SYNC_BN]
    for layer in layers:
        layer['type'] = 'BN'
    return len(layers)
