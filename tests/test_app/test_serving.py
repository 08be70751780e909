"""The page's server, asked by others than the page."""

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('gradio')

from gradio import processing_utils
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from mmdyn.app import page
from mmdyn.app.page import build_page, serve
from tests.test_app.serving import ask, form, outcome, predict, serving, upload_file

LIMIT = 0.1 * 2**20
MACHINE = socket.gethostname().lower()


@pytest.fixture(scope='module')
def address(tiny, weights, tmp_path_factory):
    pictures = Path(tiny).parent / 'data' / 'images'
    options = [tiny, weights, '--device', 'cpu', '--max-upload', 0.1, '--examples', pictures]
    with serving(options, tmp_path_factory.mktemp('server')) as (_, found):
        yield found


@pytest.fixture
def client(tmp_path):
    """Asks what a server that listens at a host has in front of gradio."""

    def make(host):
        found = {}
        queue = SimpleNamespace(launch=found.update)
        serve(
            SimpleNamespace(queue=lambda **_: queue), tmp_path, max_bytes=1000, host=host, port=None
        )
        behind = Mount('/', PlainTextResponse('the page'))
        return TestClient(Starlette(routes=[behind], **found['app_kwargs']))

    return make


@pytest.mark.parametrize(
    ('header', 'listening', 'own'),
    [
        ('127.0.0.1:7860', '127.0.0.1', True),
        ('[::1]:80', '127.0.0.1', True),
        ('192.0.2.1', '127.0.0.1', False),
        ('localhost.evil.example', '127.0.0.1', False),
        (MACHINE, '127.0.0.1', False),
        ('', '127.0.0.1', False),
        ('[', '127.0.0.1', False),
        ('192.0.2.1:7860', '0.0.0.0', True),
        ('localhost:7860', '0.0.0.0', True),
        (f'{MACHINE}:7860', '0.0.0.0', True),
        (f'{MACHINE}.local', '0.0.0.0', True),
        ('evil.example:7860', '0.0.0.0', False),
        ('1.evil.example', '0.0.0.0', False),
    ],
)
def test_which_names_are_its_own(client, header, listening, own):
    answer = client(listening).get('/config', headers={'Host': header})
    assert answer.status_code == (200 if own else 400)


@pytest.mark.parametrize(
    ('origin', 'code'),
    [(None, 200), ('http://127.0.0.1:1', 200)]
    + [(other, 403) for other in ('http://evil.example', 'null', 'http://127.0.0.1:2', '')],
)
def test_requests_of_other_pages_are_refused(client, origin, code):
    headers = {'Host': '127.0.0.1:1'} | ({} if origin is None else {'Origin': origin})
    answer = client('127.0.0.1').post('/gradio_api/upload', content=b'x', headers=headers)
    assert answer.status_code == code


def test_what_the_page_does_not_need_is_closed(client):
    at = {'Host': 'localhost'}
    for path in ('process_recording', 'call/predict', 'component_server', 'vibe-edit', 'reset'):
        assert client('127.0.0.1').post(f'/gradio_api/{path}', headers=at).status_code == 404, path
    for path in ('proxy=https://example.org', 'file=https://example.org/a.png', 'info', 'runs'):
        assert client('127.0.0.1').get(f'/gradio_api/{path}', headers=at).status_code == 404, path
    assert client('127.0.0.1').get('/monitoring', headers=at).status_code == 404


def test_how_long_a_request_may_be(client):
    asked = client('127.0.0.1')
    for content, code in ((bytes(1000), 200), (bytes(10**5), 413), (iter([b'x']), 413)):
        answer = asked.post('/gradio_api/upload', content=content, headers={'Host': 'localhost'})
        assert answer.status_code == code


@pytest.mark.parametrize('host', ['203.0.113.1', '2001:db8::1', '127.0.0.1'])
def test_where_nothing_can_listen(host):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f'--host {host}, --port {port}: '):
            serve(None, None, max_bytes=1, host=host, port=port)


def test_what_was_used_last_is_kept(client, tmp_path, monkeypatch):
    monkeypatch.setattr(page, 'KEPT_BYTES', 250 - 1000 - 2**16)
    (tmp_path / 'example').write_bytes(bytes(1000))
    asked = client('127.0.0.1')
    asked.get('/', headers={'Host': 'localhost'})
    for age, name in enumerate('abcd'):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))
    asked.post('/gradio_api/upload', content=b'x', headers={'Host': 'localhost'})
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a', 'b', 'example']


def abort_upload(address, size, announced):
    """Sends a part of a file and hangs up."""
    body, headers = form(bytes(size))
    with socket.create_connection((urlparse(address).hostname, urlparse(address).port)) as raw:
        lines = {**headers, 'Host': urlparse(address).netloc, 'Content-Length': announced}
        head = ''.join(f'{name}: {value}\r\n' for name, value in lines.items())
        raw.sendall(f'POST /gradio_api/upload HTTP/1.1\r\n{head}\r\n'.encode() + body[:size])
        time.sleep(0.1)


def test_an_upload_is_bounded(address):
    content = bytes(int(LIMIT))
    abort_upload(address, int(LIMIT), int(LIMIT) + 500)
    assert upload_file(address, content)[0] == 200
    assert upload_file(address, content + b'x')[0] == 413


def test_only_uploads_are_read(address, tmp_path):
    Image.new('RGB', (64, 64)).save(tmp_path / 'good.png')
    _, path = upload_file(address, (tmp_path / 'good.png').read_bytes())
    for sent, code, results in ((tmp_path / 'good.png', 403, None), (path, 200, 4)):
        assert ask(address, 'GET', f'/gradio_api/file={sent}')[0] == code
        assert predict(address, str(sent), 0.5)[0] == 200
        found = outcome(address)
        assert (found and len(found)) == results
    # gradio checks only what says that it was uploaded.
    link = Path(path).with_name('link.png')
    link.symlink_to(tmp_path / 'good.png')
    for sent in (tmp_path / 'good.png', Path(path).parent / '../../../good.png', link):
        for meta in (None, 'gradio.ImageData'):
            assert predict(address, str(sent), 0.5, meta=meta)[0] == 200
            assert outcome(address) is None


def test_one_picture_at_a_time_and_none_from_another_server(comparer, monkeypatch):
    built, asked = build_page(comparer, max_side=200), []

    async def download(url, **_):
        asked.append(url)
        return url

    monkeypatch.setattr(processing_utils, 'async_ssrf_protected_download', download)
    (picture,) = (block for block in built.blocks.values() if block.get_block_name() == 'image')
    named = dict(path='https://example.org/a.png', meta={'_type': 'gradio.FileData'})
    moved = processing_utils.async_move_files_to_cache(named, picture, check_in_upload_folder=True)
    assert asyncio.run(moved)['path'] == named['path'] and asked == []
    (*_, update) = built.fns.values()
    assert update.concurrency_limit == 1 and not update.preprocess


def test_a_bounded_queue(address, tmp_path):
    Image.new('RGB', (64, 64)).save(tmp_path / 'good.png')
    _, path = upload_file(address, (tmp_path / 'good.png').read_bytes())
    sessions = [f'session_{number}' for number in range(12)]
    codes = [predict(address, path, 0.5, session=one)[0] for one in sessions]
    # One is computed, eight wait.
    assert codes[:8] == [200] * 8 and set(codes[10:]) == {503}
    assert len(outcome(address, sessions[0])) == 4


@pytest.mark.parametrize(
    ('number', 'host'),
    [(signal.SIGINT, '127.0.0.1'), pytest.param(signal.SIGTERM, '::1', marks=pytest.mark.slow)],
)
def test_the_end_while_a_prediction_runs(tiny, weights, tmp_path, number, host):
    ramp = np.add.outer(np.arange(4000), np.arange(4000)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / 'large.png')
    options = [tiny, weights, '--device', 'cpu', '--max-side', 4000, '--threads', 1]
    (tmp_path / 'server').mkdir()
    with serving(options, tmp_path / 'server', host=host) as (server, address):
        code, path = upload_file(address, (tmp_path / 'large.png').read_bytes())
        assert code == 200 and predict(address, path, 0.5)[0] == 200
        abort_upload(address, 1000, 2000)
        # The second of time that it has used since is the prediction's.
        before = seconds_of(server.pid)
        while seconds_of(server.pid) < before + 1:
            time.sleep(0.05)
        start = time.monotonic()
        server.send_signal(number)
        time.sleep(0.1)
        server.send_signal(number)
        assert server.wait(20) == 128 + number
        assert time.monotonic() - start < 5
    said = (tmp_path / 'server' / 'errors').read_text()
    assert said.endswith('ed\n') and 'Traceback' not in said


def seconds_of(pid):
    """CPU time of a process."""
    used = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(used[11]) + int(used[12])) / os.sysconf('SC_CLK_TCK')
