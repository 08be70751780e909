"""The page's server, asked by others than the page."""

import asyncio
import http.client
import os
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('gradio')

from mmdyn.app.gate import KEPT_UPLOADS, is_own_name
from mmdyn.app.page import build_page, check_free
from tests.test_app.serving import ask, form, predict, serving, upload_file

LIMIT = 0.1 * 2**20


@pytest.fixture(scope='module')
def address(tiny, weights, tmp_path_factory):
    pictures = Path(tiny).parent / 'data' / 'images'
    options = [tiny, weights, '--device', 'cpu', '--max-upload', 0.1, '--examples', pictures]
    with serving(options, tmp_path_factory.mktemp('server')) as (_, found):
        yield found


def abort_upload(address, size, announced):
    """Sends a part of a file and hangs up."""
    body, headers = form(bytes(size))
    with socket.create_connection((urlparse(address).hostname, urlparse(address).port)) as raw:
        lines = {**headers, 'Host': urlparse(address).netloc, 'Content-Length': announced}
        head = ''.join(f'{name}: {value}\r\n' for name, value in lines.items())
        raw.sendall(f'POST /gradio_api/upload HTTP/1.1\r\n{head}\r\n'.encode() + body[:size])
        time.sleep(0.1)


@pytest.mark.parametrize(
    ('origin', 'code'),
    [(None, 200), ('OWN', 200)]
    + [(other, 403) for other in ('http://evil.example', 'null', 'http://127.0.0.1:1', '')],
)
def test_forms_of_other_pages_are_refused(address, origin, code):
    own = address.rstrip('/')
    headers = {} if origin is None else {'Origin': own if origin == 'OWN' else origin}
    assert upload_file(address, b'x', **headers)[0] == code


def test_the_names_of_others_are_refused(address):
    for host, code in (('evil.example', 400), ('localhost:1', 200)):
        assert ask(address, 'GET', '/config', None, {'Host': host})[0] == code
        assert upload_file(address, b'x', Host=host)[0] == code


@pytest.mark.parametrize(
    ('header', 'listening', 'own'),
    [
        ('127.0.0.1:7860', '127.0.0.1', True),
        ('LOCALHOST', '127.0.0.1', True),
        ('[::1]:80', '127.0.0.1', True),
        ('192.0.2.1', '127.0.0.1', False),
        ('localhost.evil.example', '127.0.0.1', False),
        (socket.gethostname(), '127.0.0.1', False),
        ('', '127.0.0.1', False),
        ('[', '127.0.0.1', False),
        ('192.0.2.1:7860', '0.0.0.0', True),
        ('[2001:db8::1]:7860', '::', True),
        ('localhost:7860', '0.0.0.0', True),
        (f'{socket.gethostname()}:7860', '0.0.0.0', True),
        (f'{socket.gethostname()}.local', '::', True),
        ('evil.example:7860', '192.0.2.1', False),
        ('Page.example:7860', 'page.example', True),
        ('[::1]', '[::1]', True),
    ],
)
def test_which_names_are_its_own(header, listening, own):
    assert is_own_name(header, listening) is own


@pytest.mark.parametrize('host', ['203.0.113.1', 'nowhere.invalid', '2001:db8::1', '127.0.0.1'])
def test_where_nothing_can_listen(host):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f'--host {host}, --port {port}: '):
            check_free(host, port)


def test_what_the_page_does_not_need_is_closed(address):
    for path in ('process_recording', 'call/predict', 'component_server', 'vibe-edit', 'reset'):
        body, headers = form(b'x')
        assert ask(address, 'POST', f'/gradio_api/{path}', body, headers)[0] == 404, path
    for path in ('proxy=https://example.org', 'file=https://example.org/a.png', 'info'):
        assert ask(address, 'GET', f'/gradio_api/{path}')[0] == 404, path
    assert ask(address, 'GET', '/gradio_api/../monitoring')[0] == 404
    assert ask(address, 'DELETE', '/gradio_api/upload')[0] == 404


def test_uploads_are_bounded_one_by_one_and_together(address):
    content = np.random.default_rng(0).bytes(int(LIMIT))
    shown = ask(address, 'GET', '/config')[1].decode()
    for number in range(3 * KEPT_UPLOADS):
        code, path = upload_file(address, content[:-4] + number.to_bytes(4, 'little'))
        assert code == 200
        abort_upload(address, int(LIMIT), int(LIMIT) + 500)
    uploads = Path(path).parents[1]
    kept = sum(one.stat().st_size for one in uploads.rglob('*'))
    assert LIMIT < kept < (KEPT_UPLOADS + 3) * (LIMIT + 2**16)
    assert ask(address, 'GET', f'/gradio_api/file={path}')[0] == 200, 'the last one'
    first = next(one for one in uploads.glob('*/*') if str(one) in shown)
    assert first.is_file(), 'the picture that the page begins with'
    body, headers = form(content, content)
    assert ask(address, 'POST', '/gradio_api/upload', body, headers)[0] == 413
    assert upload_file(address, content + b'x')[0] == 413
    # One piece after the other, without a length before.
    connection = http.client.HTTPConnection(urlparse(address).netloc, timeout=30)
    connection.request('POST', '/gradio_api/upload', iter([body]), headers)
    assert connection.getresponse().status == 411
    connection.close()


def test_a_picture_on_another_server_is_not_fetched(comparer, tmp_path, monkeypatch):
    from gradio import processing_utils

    monkeypatch.setenv('GRADIO_TEMP_DIR', '')
    page = build_page(comparer, tmp_path, max_side=200, max_upload=1)
    asked = []

    async def download(url, **_):
        asked.append(url)
        return url

    monkeypatch.setattr(processing_utils, 'async_ssrf_protected_download', download)
    (picture,) = (block for block in page.blocks.values() if block.get_block_name() == 'image')
    named = dict(path='https://example.org/a.png', meta={'_type': 'gradio.FileData'})
    moved = processing_utils.async_move_files_to_cache(named, picture, check_in_upload_folder=True)
    assert asyncio.run(moved)['path'] == named['path'] and asked == []


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
        assert code == 200 and predict(address, path, 0.5) == 200
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
    assert (tmp_path / 'server' / 'errors').read_text().endswith('ed\n')


def seconds_of(pid):
    """CPU time of a process."""
    used = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(used[11]) + int(used[12])) / os.sysconf('SC_CLK_TCK')
