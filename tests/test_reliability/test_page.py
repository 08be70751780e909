"""The web page, asked by many at once, and by those who mean harm."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip('gradio')

import gradio as gr

from mmdyn.apis import DynamicInferencer
from mmdyn.app.comparing import Comparer
from mmdyn.app.page import make_update
from tests.test_app.serving import outcome, predict, serving, upload_file
from tests.test_reliability.test_bad_files import PICTURES, PNG, encoded

REQUESTS = 20
SECTION = 'Web page'


@pytest.fixture(scope='module')
def server(segmentor, tmp_path_factory):
    """Address of the page's server, a picture that was uploaded, and one that wasn't."""
    folder = tmp_path_factory.mktemp('server')
    (folder / 'private.png').write_bytes(PNG)
    options = ['--device', 'cpu', '--threads', 1, '--max-pixels', 0.1]
    with serving([segmentor.config, segmentor.checkpoint, *options], folder) as (_, address):
        yield address, upload_file(address, PNG)[1], folder / 'private.png'


def test_many_at_once(server, figure):
    address, good, private = server
    large = encoded(np.zeros((300, 400, 3), np.uint8))
    bad = [upload_file(address, content)[1] for content in (PICTURES['text'], large)]
    paths = [good, *bad, str(private)]

    def answer(number):
        path, session = paths[number % len(paths)], f'many_{number}'
        if predict(address, path, 0.5, session=session)[0] == 503:
            return path, 'later'  # as many wait as may
        return path, 'refused' if outcome(address, session) is None else 'computed'

    start = time.monotonic()
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = set(pool.map(answer, range(REQUESTS)))
    assert answers <= {(path, 'later') for path in paths} | {
        (path, 'computed' if path == good else 'refused') for path in paths
    }
    assert answer(0) == (good, 'computed')
    seconds = time.monotonic() - start
    figure(SECTION, 'requests at once, of 4 kinds, all answered', f'{REQUESTS} in {seconds:.1f} s')


def test_every_bad_file_gets_an_answer(segmentor, tmp_path, figure):
    infer = DynamicInferencer(str(segmentor.config), device='cpu', max_pixels=0.1)
    update = make_update(Comparer(infer, seconds=0), 64)
    for content in PICTURES.values():
        (tmp_path / 'bad.png').write_bytes(content)
        with pytest.raises(gr.Error):
            update({'path': str(tmp_path / 'bad.png')}, 0.5)
    figure(SECTION, 'kinds of bad files, each refused in a sentence', len(PICTURES))


PATHS = ['PRIVATE', 'GOOD/../../../../private.png', '/etc/passwd', '/dev/zero', '\0', '', '.']
PATHS += ['a' * 5000, '../' * 40 + 'etc/passwd', 'http://127.0.0.1:1/a.png']


@pytest.mark.parametrize('path', PATHS, ids=range(len(PATHS)))
def test_nothing_but_an_upload_is_read(server, path):
    address, good, private = server
    path = path.replace('PRIVATE', str(private)).replace('GOOD', good)
    assert predict(address, path, 0.5)[0] in (200, 400, 422)
    assert outcome(address) is None
