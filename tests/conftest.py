"""For all tests: no network, one thread, and slow tests on request only."""

import gc
import os
import socket
import sys
from typing import Any

import pytest
import torch
from yapf.yapflib import yapf_api

# The models are tiny: more threads would only wait for each other, especially on busy cores.
torch.set_num_threads(1)

# mmengine formats every config that it writes, which takes seconds per training.
yapf_api.FormatCode = lambda text, **_: (text, True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests marked slow, unless MMDYN_NIGHTLY=1 or ``-m`` is given."""
    if os.environ.get('MMDYN_NIGHTLY') == '1' or config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker('slow')]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker('slow')]


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which mmengine runs often."""
    gc.freeze()


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny segmentor with data and weights; tests must not change it."""
    from tests.test_reliability.tiny import make_segmentor  # needs the hosts

    return make_segmentor(tmp_path_factory.mktemp('segmentor'))


@pytest.fixture(scope='session')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Like ``segmentor``, a detector."""
    from tests.test_reliability.tiny import make_detector  # needs the hosts

    return make_detector(tmp_path_factory.mktemp('detector'))


def refuse_network(event: str, arguments: tuple) -> None:
    """Refuse connections to other machines."""
    if event in ('socket.connect', 'socket.sendto', 'socket.sendmsg'):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # else a file's socket
    elif event in ('socket.getaddrinfo', 'socket.gethostbyname'):
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    here = ('localhost', '::1', '::', '0.0.0.0', '', socket.gethostname())
    if isinstance(host, str) and host not in here and not host.startswith('127.'):
        raise RuntimeError(f'a test reaches for the network: {event} {host}')


# An audit hook sees every connection of a process, in every worker of xdist.
sys.addaudithook(refuse_network)
