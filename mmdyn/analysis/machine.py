"""Description of the machine and software of a measurement."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

PACKAGES = ('mmdyn', 'torch', 'timm', 'mmengine', 'mmcv', 'mmseg', 'mmdet')


def describe_machine(device: str | torch.device = 'cpu') -> dict[str, Any]:
    """Hardware of ``device`` and host, without names of machine and users.

    Returns:
        ``cpu``, ``cores`` available to this process, ``threads`` used by torch, ``isa`` of torch's
        kernels, ``ram_gib``, ``gpu`` (None if unused), ``system`` and ``python``; None for what is
        unknown.
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
    """Version of each installed package of :data:`PACKAGES`, by module name."""
    found = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version is not None}


def load_average() -> float | None:
    """Processes running or waiting during the last minute; None if unavailable."""
    return round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None


def describe(machine: dict[str, Any], packages: dict[str, str]) -> str:
    """Format :func:`describe_machine` and :func:`versions`, without a full stop."""
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
    except Exception:  # absent or broken
        return None
