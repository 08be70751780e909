"""What a measurement was made on and with: said beside every figure."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

PACKAGES = ('mmdyn', 'torch', 'timm', 'mmengine', 'mmcv', 'mmseg', 'mmdet')


def describe_machine(device: str | torch.device = 'cpu') -> dict[str, Any]:
    """The machine that computed on ``device``, without its name, its users or any path.

    Returns:
        ``cpu``, ``cores`` that this process may use, ``threads`` that torch does use,
        ``isa`` of torch's kernels, ``ram_gib``, ``gpu`` (None if none was used),
        ``system`` and ``python``; what can't be found out is None.
    """
    cuda = torch.device(device).type == 'cuda'
    affinity = getattr(os, 'sched_getaffinity', None)
    return dict(
        cpu=_cpu_model(),
        cores=len(affinity(0)) if affinity else os.cpu_count(),
        threads=torch.get_num_threads(),
        isa=torch.backends.cpu.get_cpu_capability(),
        ram_gib=_ram_gib(),
        gpu=torch.cuda.get_device_name(device) if cuda else None,
        system=f'{platform.system()} {platform.machine()}',
        python=platform.python_version(),
    )


def versions() -> dict[str, str]:
    """Version of each of :data:`PACKAGES` that is there, by its module's name."""
    found = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version is not None}


def load_average() -> float | None:
    """Processes that ran or waited during the last minute; None where that is not told."""
    return round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None


def describe(machine: dict[str, Any], packages: dict[str, str]) -> str:
    """What :func:`describe_machine` and :func:`versions` tell, without the full stop."""
    parts = [
        machine['gpu'],
        f'{machine["threads"]} thread(s) on {machine["cores"]} core(s) of {machine["cpu"]} '
        f'({machine["isa"]})',
        machine['ram_gib'] and f'{machine["ram_gib"]} GiB of memory',
        f'{machine["system"]}, Python {machine["python"]}',
        ', '.join(f'{name} {version}' for name, version in packages.items()),
    ]
    return '; '.join(part for part in parts if part)


def _cpu_model() -> str | None:
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.is_file() else ():
        key, _, value = line.partition(':')
        if key.strip() == 'model name':
            return value.strip()
    return platform.processor() or None


def _ram_gib() -> float | None:
    try:
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, ValueError, OSError):  # not on this system
        return None
    return round(total / 2**30, 1)


def _version(name: str) -> str | None:
    try:
        return importlib.import_module(name).__version__
    except Exception:  # absent or broken, it takes no part either way
        return None
