"""The page's server in a process of its own, and requests to it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlparse

from mmdyn import cli

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30


@contextlib.contextmanager
def serving(options, folder, where=None, host='127.0.0.1'):
    """The process and the page's address; at the end it has to go, and all its files.

    Args:
        options: of the tool.
        folder: for its temporary files and its messages.
        where: it is started in; None = the folder.
        host: to listen at.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    errors = folder / 'errors'
    server = subprocess.Popen(
        [sys.executable, ROOT / 'tools' / 'app.py', *map(str, options), '--host', host]
        + ['--port', str(port)],
        cwd=where or folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(folder)},
        stdout=subprocess.PIPE,
        stderr=errors.open('w'),
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        said = next((line for line in server.stdout if 'the page is at' in line), '')
        assert said, errors.read_text()
        yield server, re.search(r'http://\S+', said)[0]
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) in (cli.INTERRUPTED, cli.TERMINATED), errors.read_text()
    finally:
        server.kill()
        server.communicate()
    left = [path.name for path in folder.glob('*') if path.name.startswith(('mmdyn-', 'gradio'))]
    assert not left and not list(folder.glob('tmp*')), 'files are left behind'


def ask(address, method, path, body=None, headers=None):
    """Status and content of an answer."""
    connection = http.client.HTTPConnection(urlparse(address).netloc, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def form(content):
    """A form with a file, as a browser sends it: body and headers."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
        'Content-Type: image/png\r\n\r\n'
    )
    body = head.encode() + content + f'\r\n--{boundary}--\r\n'.encode()
    return body, {'Content-Type': f'multipart/form-data; boundary={boundary}'}


def upload_file(address, content):
    """Uploads a file: status, and its path on the server if that is 200."""
    code, answer = ask(address, 'POST', '/gradio_api/upload', *form(content))
    return code, json.loads(answer)[0] if code == 200 else None


def predict(address, path, *ratios, session='session', meta='gradio.FileData'):
    """Asks for a prediction on an uploaded file; returns at once, the status and the answer."""
    handler = json.loads(ask(address, 'GET', '/config')[1])['dependencies'][-1]['id']
    picture = dict(path=path, **({'meta': {'_type': meta}} if meta else {}))
    request = json.dumps(dict(data=[picture, *ratios], fn_index=handler, session_hash=session))
    headers = {'Content-Type': 'application/json'}
    return ask(address, 'POST', '/gradio_api/queue/join', request, headers)


def outcome(address, session='session'):
    """Waits for what a session asked for: its results, or None if that failed."""
    _, events = ask(address, 'GET', f'/gradio_api/queue/data?session_hash={session}')
    (done,) = (line for line in events.decode().splitlines() if 'process_completed' in line)
    done = json.loads(done.removeprefix('data: '))
    return done['output'].get('data') if done['success'] else None
