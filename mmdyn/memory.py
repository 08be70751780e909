"""Keep freed memory in the process (glibc)."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_HIGHEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc reuse freed memory instead of returning it, in the whole process.

    By default each large tensor is freshly mapped, and the system clears its pages at first touch:
    up to a fifth of a segmentor's time at 512x512. The process keeps its peak size. Threads started
    later share one arena, since large tensors would not fit per-thread ones.

    Returns:
        Whether it succeeded; False with another C library or an unsupported setting.
    """
    if not sys.platform.startswith('linux'):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    # glibc before 2.35 accepts at most 32 MiB. Without it the other settings would cost time.
    if not any(mallopt(_MMAP_THRESHOLD, value) == 1 for value in (_HIGHEST, 32 * 2**20)):
        return False
    return mallopt(_TRIM_THRESHOLD, _HIGHEST) == mallopt(_ARENA_MAX, 1) == 1
