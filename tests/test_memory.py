"""keep_freed_memory."""

import subprocess
import sys

import pytest

from mmdyn.memory import keep_freed_memory

COUNTING = """
import resource
import threading
import torch
from mmdyn.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def of_a_call():
    before = faults()
    torch.ones(2**23)  # 32 MiB, 8192 pages
    return faults() - before

def count(calls):
    # Small pieces beside it may keep glibc from using the same place again, some times.
    found.append(min(of_a_call() for _ in range(calls)))

found = []
count(2)
kept = keep_freed_memory()
count(20)
thread = threading.Thread(target=count, args=[20])
thread.start()
thread.join()
print(kept, *found)
"""


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert keep_freed_memory() is False


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='of glibc')
def test_memory_is_handed_out_again_without_new_pages():
    done = subprocess.run(
        [sys.executable, '-c', COUNTING], capture_output=True, text=True, check=True
    )
    kept, before, *after = done.stdout.split()
    if kept == 'False':
        pytest.skip('another C library than glibc')
    assert max(map(int, after)) < int(before) / 4
