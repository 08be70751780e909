"""Keep freed memory in the process (glibc)."""

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
        Whether it does; False where the C library is another, or takes no such setting.
    """
    if not sys.platform.startswith('linux'):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    # glibc before 2.35 takes no more than 32 MiB. The others would slow it down without this one.
    if not any(mallopt(_MMAP_THRESHOLD, value) == 1 for value in (_HIGHEST, 32 * 2**20)):
        return False
    return mallopt(_TRIM_THRESHOLD, _HIGHEST) == mallopt(_ARENA_MAX, 1) == 1
