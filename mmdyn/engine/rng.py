"""Random-number state as plain data: what a checkpoint can hold and a safe load can read.

A state is a dict with the keys

- ``python``: ``dict(version=int, words=(625,) int64 tensor, gauss=float | None)``
- ``numpy``: ``dict(words=(624,) int64 tensor, position=int, has_gauss=int, gauss=float)``
- ``torch``: uint8 tensor, the CPU generator's state
- ``cuda``: uint8 tensor, the current CUDA device's state, or None where there is none

Only the current CUDA device is covered: a process of mmengine uses one.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def get_rng_state() -> dict[str, Any]:
    """Reads the state of Python's, numpy's and torch's global generators.

    Returns:
        The state, as described at the top of this file; nothing in it
        changes when the generators go on.
    """
    return dict(
        python=_get_python_state(),
        numpy=_get_numpy_state(),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    )


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts the global generators where they were when ``state`` was read.

    Args:
        state: What :func:`get_rng_state` returned. Its tensors may lie
            on any device: resuming moves a checkpoint's tensors to the GPU.
            The CUDA part is left out where there is no CUDA, and a state taken
            without CUDA leaves the CUDA generator as it is.
    """
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    words = numpy['words'].cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', words, numpy['position'], numpy['has_gauss'], numpy['gauss']))
    torch.set_rng_state(_as_bytes(state['torch']))
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_as_bytes(state['cuda']))


def _get_python_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    return dict(version=version, words=torch.tensor(words, dtype=torch.int64), gauss=gauss)


def _get_numpy_state() -> dict[str, Any]:
    _, words, position, has_gauss, gauss = np.random.get_state()
    return dict(
        words=torch.from_numpy(words.astype(np.int64)),
        position=int(position),
        has_gauss=int(has_gauss),
        gauss=float(gauss),
    )


def _as_bytes(state: Tensor) -> Tensor:
    return state.detach().to(device='cpu', dtype=torch.uint8)
