"""Distributed runs on machines without an accelerator.

mmengine's launchers call ``torch.cuda.set_device`` and wrap the model for a GPU, which raises
without one. They leave an initialised gloo group alone; the wrapper's ``device_ids`` and SyncBN,
which has no CPU kernel, are handled here.
"""

import datetime
import math
import os
import subprocess

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from mmdyn.config_parts import add_hook, parts, type_name

# Environment variables with global rank, world size and local rank, by launcher.
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
"""Timeout between processes in seconds: torch's default for NCCL (that for gloo is half an
hour)."""

# The last is torch's class name, as in pure-Python configs.
_SYNC_BN = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')


def prepare_cpu_distributed(cfg: Config) -> str | None:
    """Make a distributed run work without an accelerator; with one, only set its timeout.

    Call it before the Runner is built, with ``cfg.launcher`` set; returns a line for the log.
    Without an accelerator it initialises a gloo process group from the launcher's environment, sets
    ``model_wrapper_cfg`` and replaces SyncBN by BN with running statistics averaged over processes.

    Raises:
        ValueError: if the process was not started by the launcher, or the timeout is invalid.
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
    """Check that this process was started by the launcher, 'pytorch', 'slurm' or 'mpi'.

    Raises:
        ValueError: if the launcher is unknown, or its environment lacks a valid rank and size.
    """
    if launcher not in _ENVIRONMENT:
        raise ValueError(f'launcher must be none, {", ".join(_ENVIRONMENT)}; got {launcher!r}')
    names = _ENVIRONMENT[launcher][:2]
    rank, size = (os.environ.get(name, '') for name in names)
    # With invalid numbers the processes would wait for each other.
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise ValueError(
            f'--launcher {launcher}: the environment variables {" and ".join(names)} are {rank!r} '
            f'and {size!r}, so this process was not started by that launcher: start it with '
            f'{_STARTERS[launcher]}, or remove --launcher to run one process'
        )


def set_timeout(cfg: Config) -> float:
    """Limit how long processes wait for one that died or hangs.

    Sets ``env_cfg.dist_cfg.timeout`` to ``DEFAULT_TIMEOUT`` unless it is set.

    Returns:
        The timeout in seconds.

    Raises:
        ValueError: if it is not a positive number.
    """
    dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg') or dict(backend='nccl')
    timeout = dist_cfg.get('timeout', DEFAULT_TIMEOUT)
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout < math.inf:
        raise ValueError(
            'env_cfg.dist_cfg.timeout, the seconds that processes wait for each other, must be a '
            f'positive number, got {timeout!r}'
        )
    cfg.merge_from_dict({'env_cfg.dist_cfg': {**dist_cfg, 'timeout': timeout}})
    return timeout


def is_first(launcher: str) -> bool:
    """Whether this is the first or only process of its run, from the environment."""
    return launcher not in _ENVIRONMENT or os.environ.get(_ENVIRONMENT[launcher][0], '0') == '0'


def init_gloo(launcher: str, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Initialise the default process group with gloo, unless there is one.

    Collectives time out after ``timeout`` seconds. Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT where the launcher does not.
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

    Keeps the user's settings there and a top-level ``find_unused_parameters``; wrappers of other
    types are left alone.
    """
    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    if type_name(wrapper) == 'MMDistributedDataParallel':
        wrapper.setdefault('broadcast_buffers', False)
        # mmengine reads the top-level key only without a model_wrapper_cfg.
        wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))
        wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper


def revert_sync_bn(cfg: Config) -> int:
    """Replace SyncBN by BN in the model's config and disable ``sync_bn``; returns the number."""
    if cfg.get('sync_bn') is not None:
        cfg.sync_bn = None
    layers = [part for _, part in parts(cfg.get('model'), 'model') if type_name(part) in _SYNC_BN]
    for layer in layers:
        layer['type'] = 'BN'
    return len(layers)
