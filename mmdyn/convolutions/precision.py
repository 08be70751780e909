"""Precisions of prepared models, and their requirements."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from mmdyn.convolutions.products import can_pack


class Precision(NamedTuple):
    """Dtypes of factors in products; sums are float32 or int32.

    Attributes:
        products: float32, bfloat16 or qint8, for linear layers and 1x1 convolutions.
        kernels: float32 or bfloat16, for 3x3 convolutions.
    """

    products: torch.dtype = torch.float32
    kernels: torch.dtype = torch.float32


PRECISIONS = {
    'float32': Precision(),
    'bfloat16': Precision(torch.bfloat16, torch.bfloat16),
    'int8': Precision(torch.qint8, torch.bfloat16),
}

# CPU flags in /proc/cpuinfo, one of which is needed.
_INSTRUCTIONS = {
    torch.float32: (),
    torch.bfloat16: ('avx512_bf16', 'amx_bf16'),
    torch.qint8: ('avx512_vnni',),
}


def choose_precision(name: str) -> Precision:
    """Look up a precision by name, a key of :data:`PRECISIONS`.

    With ``'int8'``, 3x3 convolutions stay in float32 on a CPU without bfloat16.

    Raises:
        ValueError: if it is unknown, or not supported by the CPU or torch.
    """
    if name not in PRECISIONS:
        raise ValueError(f'precision={name!r} is unknown: choose one of {", ".join(PRECISIONS)}')
    precision = PRECISIONS[name]
    if name == 'float32':
        return precision
    if not torch_computes(precision.products):
        raise ValueError(
            f'precision={name!r} needs a torch with oneDNN and quantized operators for x86-64: '
            "install an official build of PyTorch, or leave the precision at 'float32'"
        )
    flags = cpu_flags()
    if not _computes(precision.products, flags):
        needed = ' or '.join(_INSTRUCTIONS[precision.products])
        raise ValueError(
            f'precision={name!r} needs a CPU with {needed}, which /proc/cpuinfo does not list '
            "here: leave the precision at 'float32'"
        )
    return precision if _computes(precision.kernels, flags) else Precision(precision.products)


def torch_computes(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for a dtype."""
    return can_pack() and (
        dtype != torch.qint8 or 'x86' in torch.backends.quantized.supported_engines
    )


def cpu_flags() -> frozenset[str]:
    """CPU flags as in Linux; empty if unknown."""
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.is_file() else ():
        key, _, value = line.partition(':')
        if key.strip() == 'flags':
            return frozenset(value.split())
    return frozenset()


def _computes(dtype: torch.dtype, flags: frozenset[str]) -> bool:
    needed = _INSTRUCTIONS[dtype]
    return not needed or any(flag in flags for flag in needed)
