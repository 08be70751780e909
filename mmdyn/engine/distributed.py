"""Distributed runs on machines without an accelerator.

mmengine's launchers call ``torch.cuda.set_device`` and wrap the model for a GPU, which raises
without one. A gloo group that is initialised beforehand is left alone; what remains are the
wrapper's ``device_ids`` and SyncBN, which has no CPU kernel.
"""

import datetime
import math
import os
import subprocess

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from mmdyn.config_parts import add_hook, parts, type_name

# What each launcher calls the global rank, the number of processes and the local rank.
_ENVIRONMENT = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
_STARTERS = dict(
    pytorch='torchrun, as tools/dist_train.sh does',
    slurm='srun, as tools/slurm_train.sh does',
    mpi='mpirun',
)
DEFAULT_TIMEOUT = 600
"""How long processes wait for each other, in seconds. Torch's own default over NCCL; over gloo it
would be half an hour."""

# The last is torch's class, as pure-Python configs have it.
_SYNC_BN = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')


def prepare_cpu_distributed(cfg: Config) -> str | None:
    """Make a distributed run work without an accelerator; with one, only bound its waiting.

    To be called before the Runner is built, with ``cfg.launcher`` set; returns a line for the log.
    Without an accelerator it initialises the gloo process group from the launcher's environment,
    sets ``model_wrapper_cfg`` and replaces SyncBN by BN whose running statistics are averaged over
    the processes.

    Raises:
        ValueError: If the process was not started by the launcher it names, or the time to wait
            is none.
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
    add_hook(cfg, 'SyncRunningStatsHook')
    note = f'No accelerator found: {dist.get_world_size()} processes run on the CPU over gloo'
    return f'{note}; {reverted} SyncBN layer config(s) became BN.' if reverted else f'{note}.'


def check_launcher(launcher: str) -> None:
    """Check that this process was started by 'pytorch', 'slurm' or 'mpi'.

    Raises:
        ValueError: If the launcher is unknown, or its environment does not give a rank and a size.
    """
    if launcher not in _ENVIRONMENT:
        raise ValueError(f'launcher must be one of none, {", ".join(_ENVIRONMENT)}: {launcher!r}')
    names = _ENVIRONMENT[launcher][:2]
    rank, size = (os.environ.get(name, '') for name in names)
    # With other numbers the processes would wait for each other.
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise ValueError(
            f'--launcher {launcher}: the environment variables {" and ".join(names)} are {rank!r} '
            f'and {size!r}, so this process was not started by that launcher: start it with '
            f'{_STARTERS[launcher]}, or leave out --launcher to run one process'
        )


def set_timeout(cfg: Config) -> float:
    """Bound how long processes wait for one that died or hangs.

    Sets ``env_cfg.dist_cfg.timeout`` to ``DEFAULT_TIMEOUT`` unless it is there.

    Returns:
        The time in seconds.

    Raises:
        ValueError: If it is no positive number.
    """
    dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg') or dict(backend='nccl')
    timeout = dist_cfg.get('timeout', DEFAULT_TIMEOUT)
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout < math.inf:
        raise ValueError(
            'env_cfg.dist_cfg.timeout, how long processes wait for each other, must be a positive '
            f'number of seconds, got {timeout!r}'
        )
    cfg.merge_from_dict({'env_cfg.dist_cfg': {**dist_cfg, 'timeout': timeout}})
    return timeout


def is_first(launcher: str) -> bool:
    """Whether this is the first process of its run, or the only one; known from the environment."""
    return launcher not in _ENVIRONMENT or os.environ.get(_ENVIRONMENT[launcher][0], '0') == '0'


def init_gloo(launcher: str, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Initialise the default process group with the gloo backend, unless there is one.

    A collective may wait ``timeout`` seconds. Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT where the launcher does not.
    """
    if dist.is_initialized():
        return
    rank, world_size, local_rank = _ENVIRONMENT[launcher]
    os.environ['RANK'] = os.environ[rank]
    os.environ['WORLD_SIZE'] = os.environ[world_size]
    os.environ['LOCAL_RANK'] = os.environ.get(local_rank, '0')
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ and launcher == 'slurm':  # the host of rank 0
        command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        hosts = subprocess.run(command, capture_output=True, text=True, check=True)
        os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))


def use_cpu_wrapper(cfg: Config) -> None:
    """Set ``cfg.model_wrapper_cfg`` for DistributedDataParallel without device ids.

    What the user set there, and a top-level ``find_unused_parameters``, stay. A
    wrapper of another type is left as it is.
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
    """Replace SyncBN by BN in the model's config, and turn ``sync_bn`` off; return how many."""
    if cfg.get('sync_bn') is not None:
        cfg.sync_bn = None
    layers = [part for _, part in parts(cfg.get('model'), 'model') if type_name(part) in _SYNC_BN]
    for layer in layers:
        layer['type'] = 'BN'
    return len(layers)
