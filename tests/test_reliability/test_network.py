"""No network access unless requested."""

import json
import os
import socket
import subprocess
import sys
import urllib.request

import pytest

from tests.test_tools.segmentation import ROOT

SECTION = 'Network'

# 192.0.2.0/24 and .invalid are reserved for examples and unreachable.
REACHES = {
    'connect': lambda: socket.create_connection(('192.0.2.1', 80), timeout=0.1),
    'connect_ex': lambda: socket.socket().connect_ex(('192.0.2.1', 80)),
    'a datagram': lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53)),
    'a name': lambda: socket.getaddrinfo('mmdyn.invalid', 80),
    'a download': lambda: urllib.request.urlopen('http://mmdyn.invalid/x'),
    'a numeric download': lambda: urllib.request.urlopen('http://192.0.2.1/x', timeout=0.1),
}


@pytest.mark.parametrize('how', REACHES)
def test_tests_cannot_reach_another_machine(how):
    with pytest.raises(RuntimeError, match='reaches for the network'):
        REACHES[how]()


def test_tests_can_talk_to_themselves():
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        for host in ('127.0.0.1', 'localhost'):
            socket.create_connection((host, port), timeout=5).close()


WATCHED = """
import contextlib, importlib, importlib.util, io, json, pkgutil, runpy, socket, sys
from pathlib import Path

_, what = sys.argv
REACHES = ('connect', 'sendto', 'sendmsg', 'getaddrinfo', 'gethostbyname', 'gethostbyaddr')
EVENTS = {f'socket.{name}' for name in REACHES} | {'urllib.Request', 'http.client.connect'}
seen, done = [], []
sys.addaudithook(lambda event, arguments: seen.append(event) if event in EVENTS else None)

def note(name):
    done.append(name)
    if seen:
        sys.exit(f'{name}: {seen}')

if what == 'tools':
    for path in sorted(Path('tools').glob('*.py')):
        sys.argv = [str(path), '--help']
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(str(path), run_name='__main__')
        note(path.stem)
elif what == 'modules':
    import mmdyn
    note('mmdyn')
    for module in pkgutil.walk_packages(mmdyn.__path__, 'mmdyn.'):
        needs_onnx = module.name.endswith('onnx_operators')
        if needs_onnx and not importlib.util.find_spec('onnx'):
            continue
        if not module.name.endswith('__main__'):
            importlib.import_module(module.name)
            note(module.name)
else:
    with contextlib.suppress(OSError):
        socket.getaddrinfo('', 0)
    note('on purpose')
print(json.dumps(done))
"""
"""Imports every module, or asks every tool for help; ends at the first network access."""


def watched(what):
    return subprocess.run(
        [sys.executable, '-c', WATCHED, what],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ('what', 'least'), [pytest.param('modules', 100, marks=pytest.mark.slow), ('tools', 10)]
)
def test_imports_and_help_reach_for_nothing(what, least, figure):
    done = watched(what)
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])
    assert len(names) >= least
    figure(SECTION, f'{what} that reach for nothing when imported or asked for help', len(names))


def test_the_watch_sees_what_reaches_out():
    done = watched('what reaches out')
    assert done.returncode == 1 and 'on purpose' in done.stderr
