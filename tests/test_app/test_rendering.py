"""What the page shows of a comparison, and in place of one."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmdyn.apis import DynamicInferencer
from mmdyn.app.comparing import Comparer
from mmdyn.app.page import HINT, make_update
from mmdyn.app.rendering import message, render
from mmdyn.visualization.inference import predicted
from tests.test_apis.test_predictions import ONE_CHANNEL


class Parsed(HTMLParser):
    """The pictures and the cells of a piece of HTML, in which every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.images, self.cells, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == 'img':
            self.images.append(dict(attrs))
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ('td', 'th', 'strong'):
            self.cells.append(data)


def pixels(image):
    content = base64.b64decode(image['src'].removeprefix('data:image/png;base64,'))
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture(scope='module')
def compared(comparer, picture):
    return comparer(picture)


def test_one_output_channel(tiny, picture):
    infer = DynamicInferencer(tiny, device='cpu', cfg_options=ONE_CHANNEL)
    found = Comparer(infer, seconds=0)(picture)
    sides = [side.inference.labels for side in (found.dense, found.sparse)]
    cells = Parsed(render(found, (128, 160))).cells
    same = 100 * (sides[0] == sides[1]).mean()
    assert set(np.unique(sides)) <= {0, 1} and f'{same:.1f} % of pixels' in cells


def test_pictures_and_figures(compared):
    shown = render(compared, (128, 160))
    parsed = Parsed(shown)
    # Two predictions, three predictors, a heat map.
    assert len(parsed.images) == 6 and all(image['alt'] for image in parsed.images)
    assert np.array_equal(pixels(parsed.images[0]), predicted(compared.dense.inference))
    assert np.array_equal(pixels(parsed.images[1]), predicted(compared.sparse.inference))
    dark = [pixels(image).mean() for image in parsed.images[2:5]]
    assert dark == sorted(dark, reverse=True), 'less is kept by each predictor'
    total = parsed.cells.index('GMACs, model')
    assert parsed.cells[total + 1 : total + 3] == [
        f'{side.macs.total / 1e9:.3f}' for side in (compared.dense, compared.sparse)
    ]
    assert f'{compared.speedup.median:.2f}x' in parsed.cells
    agree = (compared.dense.inference.labels == compared.sparse.inference.labels).mean()
    assert f'{100 * agree:.1f} % of pixels' in parsed.cells
    assert 'shrunk' not in shown


def test_notes(compared):
    assert '1600x1280' in render(compared, (1280, 1600))
    count = compared.sparse.macs
    count = replace(count, unknown=count.unknown + type(count.unknown)({'odd::op': 1}))
    vague = replace(compared, sparse=replace(compared.sparse, macs=count))
    assert 'odd::op' in render(vague, (128, 160))


def test_names_are_text_and_no_markup(compared):
    sides = {
        name: replace(side, inference=replace(side.inference, classes=('<script>',) * 3))
        for name, side in (('dense', compared.dense), ('sparse', compared.sparse))
    }
    shown = render(replace(compared, **sides), (128, 160))
    assert '<script>' not in shown and '&lt;script&gt;' in shown
    assert '&lt;b&gt;' in message('<b>', error=True)


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / 'uploads'
    folder.mkdir()
    Image.new('RGB', (64, 48)).save(folder / 'good.png')
    (folder / 'broken.png').write_bytes(b'nothing')
    return folder


def test_whatever_is_sent_gets_an_answer(comparer, uploads, monkeypatch, caplog):
    update = make_update(comparer, uploads, 200)
    assert HINT in update(None, 0.7)
    assert 'no picture' in update({'path': str(uploads / 'broken.png')}, 0.7)
    good = {'path': str(uploads / 'good.png')}
    for ratio in (7, 'much', None):
        assert 'role="alert"' in update(good, ratio)
    monkeypatch.setattr(type(comparer), '__call__', lambda *_, **__: 1 / 0)
    said = update(good, 0.7)
    assert 'role="alert"' in said and 'division by zero' not in said
    assert 'ZeroDivisionError: division by zero' in caplog.text
    monkeypatch.undo()
    assert '<table>' in update(good, 0.7)


def test_no_other_files_of_the_machine_are_read(comparer, uploads):
    update = make_update(comparer, uploads, 200)
    private = uploads.parent / 'private.png'
    Image.new('RGB', (64, 48)).save(private)
    (uploads / 'link.png').symlink_to(private)
    paths = (private, uploads / '..' / 'private.png', uploads / 'link.png')
    for upload in (*({'path': str(path)} for path in paths), {'path': None}, {}):
        assert 'not uploaded here' in update(upload, 0.7)
