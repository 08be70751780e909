"""The C library's memory, kept for the next call."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_HIGHEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next allocation, in the whole process.

    Otherwise each large tensor is mapped anew, and the system clears its pages at first touch: at
    512x512 up to a fifth of a segmentor's time. The process stays as large as it ever was. Threads
    that are started afterwards share its memory: in pools of their own, large tensors find no room.

    Returns:
        Whether it does; False where the C library is another.
    """
    if not sys.platform.startswith('linux'):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    options = {_MMAP_THRESHOLD: _HIGHEST, _TRIM_THRESHOLD: _HIGHEST, _ARENA_MAX: 1}
    return all([mallopt(which, value) == 1 for which, value in options.items()])
