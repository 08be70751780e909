"""The handler of the web page, asked by many at once, and by those who mean harm."""

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from mmdyn.apis import DynamicInferencer
from mmdyn.app.comparing import Comparer
from mmdyn.app.page import make_update
from tests.test_reliability.test_bad_files import PICTURES, PNG

REQUESTS = 20
SECTION = 'Web page'


@pytest.fixture(scope='module')
def comparer(segmentor):
    infer = DynamicInferencer(str(segmentor.config), device='cpu', max_pixels=0.1)
    return Comparer(infer, cpu_threads=1, seconds=0)


@pytest.fixture
def update(comparer, tmp_path):
    """The handler and its folder of uploads; beside that, what is none of its business."""
    uploads = tmp_path / 'uploads'
    uploads.mkdir()
    (uploads / 'good.png').write_bytes(PNG)
    Image.new('RGB', (400, 300)).save(uploads / 'large.png')
    for number, content in enumerate(PICTURES.values()):
        (uploads / f'bad_{number}.png').write_bytes(content)
    (tmp_path / 'private.png').write_bytes(PNG)
    (uploads / 'link.png').symlink_to(tmp_path / 'private.png')
    return make_update(comparer, uploads, 64), uploads


def listing(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob('*') if not path.is_dir()}


def test_many_at_once(update, tmp_path, monkeypatch, figure):
    update, uploads = update
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    kinds = [
        (uploads / 'good.png', '<table>'),
        (uploads / 'bad_0.png', 'not a readable picture'),
        (uploads / '..' / 'private.png', 'not uploaded here'),
        (uploads / 'large.png', 'the limit is 0.1 million'),
    ]
    before, threads = listing(tmp_path), threading.active_count()
    start = time.monotonic()
    with ThreadPoolExecutor(REQUESTS) as pool:
        asked = [
            (pool.submit(update, {'path': str(path)}, 0.5), said)
            for path, said in kinds * (REQUESTS // len(kinds))
        ]
        for answer, said in asked:
            assert said in answer.result(timeout=60)
    assert listing(tmp_path) == before
    assert threading.active_count() == threads
    seconds = time.monotonic() - start
    figure(SECTION, 'requests at once, of 4 kinds, all answered', f'{REQUESTS} in {seconds:.1f} s')
    figure(SECTION, 'files they left behind', 0)


def test_every_bad_file_gets_an_answer(update, figure):
    update, uploads = update
    for number, kind in enumerate(PICTURES):
        assert 'role="alert"' in update({'path': str(uploads / f'bad_{number}.png')}, 0.5), kind
    figure(SECTION, 'kinds of bad files, each refused in a sentence', len(PICTURES))


PATHS = ['../private.png', 'link.png', '/etc/passwd', '/dev/zero', '\0', '', '.', 'a' * 5000]
NO_UPLOADS = ['text', 3, [], ['path'], {}, {'path': None}, {'path': 3}, {'path': {'path': 'good'}}]


@pytest.mark.parametrize('sent', [*PATHS, '../' * 40 + 'etc/passwd', *NO_UPLOADS], ids=str)
def test_nothing_but_an_upload_is_read(update, sent):
    update, uploads = update
    if sent in PATHS or str(sent).startswith('../'):
        sent = {'path': sent if sent[:1] == '/' else f'{uploads}/{sent}'}
    shown = update(sent, 0.5)
    assert 'role="alert"' in shown and '<table>' not in shown
