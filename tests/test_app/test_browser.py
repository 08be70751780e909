"""The page in a headless Chromium: load, upload, slide, see the pictures change.

Environment:
    MMDYN_CHROMIUM    the browser (default: one on PATH, else playwright's own)
    MMDYN_SCREENSHOT  a file to write a screenshot of the page to
    MMDYN_DEMO        a folder with work_dirs/demo, whose models are served instead of a tiny one
                      (for the screenshot; without the limits that the other tests reach)
"""

import importlib.util
import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from mmdyn.datasets.scene_renderer import render_scene
from tests.test_app.serving import serving

pytestmark = pytest.mark.browser

FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
)
SECONDS = 120 if 'MMDYN_DEMO' in os.environ else 30
PICTURES = '[data-testid=imageslider-image], [aria-label^=Thumbnail] img'


def lacking(what):
    """Without what it takes these tests can't run, which must not go unnoticed in CI."""
    if os.environ.get('CI') == 'true':
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope='module')
def browser():
    for package in ('gradio', 'playwright'):
        if importlib.util.find_spec(package) is None:
            lacking(f'{package} is not installed: pip install -r requirements/app.txt playwright')
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        names = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
        found = os.environ.get('MMDYN_CHROMIUM') or next(filter(None, map(shutil.which, names)), '')
        found = found or playwright.chromium.executable_path
        if not Path(found).exists():
            lacking(
                'no Chromium: apt-get install chromium, or playwright install chromium, or name '
                'one in MMDYN_CHROMIUM'
            )
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Pictures, good and bad, by name."""
    folder = tmp_path_factory.mktemp('pictures')
    size = 512 if 'MMDYN_DEMO' in os.environ else 128
    Image.fromarray(render_scene((0, 3, 4), size).image).save(folder / 'good.png')
    Image.new('1', (1500, 1000)).save(folder / 'vast.png')
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / 'heavy.png')
    (folder / 'text.txt').write_text('no picture')
    return folder


@pytest.fixture(scope='module')
def address(browser, tiny, weights, tmp_path_factory):
    """Of a server in a process of its own."""
    folder = tmp_path_factory.mktemp('server')
    if 'MMDYN_DEMO' in os.environ:
        options, where = [], os.environ['MMDYN_DEMO']
    else:
        options, where = [tiny, weights], folder
        options += ['--examples', str(Path(tiny).parent / 'data' / 'images'), '--device', 'cpu']
        options += ['--max-upload', '1', '--max-pixels', '1', '--threads', '1']
    with serving(options, folder, where) as (_, address):
        yield address
        assert 'Traceback' not in (folder / 'errors').read_text()


@pytest.fixture(scope='module')
def watched(browser, address):
    """A tab with the page in it; the errors it logs, the hosts it asks."""
    tab = browser.new_page(viewport=dict(width=1280, height=1000))
    tab.set_default_timeout(1000 * SECONDS)
    problems, asked = [], set()
    tab.on('console', lambda line: is_problem(line) and problems.append(line.text))
    tab.on('pageerror', lambda error: problems.append(str(error)))
    tab.on('request', lambda request: asked.add(urlparse(request.url).hostname))
    tab.goto(address)
    yield tab, problems, asked
    tab.close()


def is_problem(line):
    """Of a file that is too large, gradio asks how its upload goes, which never began."""
    asks = 'upload_progress' in line.location['url'] or line.text == 'Response'
    return line.type == 'error' and not asks


@pytest.fixture
def page(watched):
    """The page; after each test nothing has been asked of others, and no error been logged."""
    tab, problems, asked = watched
    tab.wait_for_selector(PICTURES)
    yield tab
    assert problems == []
    assert asked - {None} == {'127.0.0.1'}, 'None: of a picture that is its own address'


def state(tab):
    """Addresses of the predictions, dense and sparse, and of the decisions; the table's rows."""
    pictures = tab.locator(PICTURES).evaluate_all('all => all.map(one => one.src)')
    cells = [one.strip() for one in tab.get_by_role('gridcell').all_inner_texts()]
    rows = zip(cells[::3], cells[2::3], strict=True)
    return pictures, dict(rows)


def changed(tab, before):
    """Waits for other pictures than those before, and returns what is shown then."""
    tab.wait_for_function(
        '([selector, last]) => { const now = [...document.querySelectorAll(selector)]'
        '.map(one => one.src); return now.length > 2 && now.join() !== last }',
        arg=[PICTURES, ','.join(before)],
    )
    return state(tab)


def upload(tab, file):
    if tab.get_by_label('Remove Image').is_visible():
        tab.get_by_label('Remove Image').click()
        tab.wait_for_selector(PICTURES, state='detached')
    tab.locator('input[type=file][accept^=image]').set_input_files(file)


def settled(tab):
    """Waits for the results at the slider's ratio, and returns what is shown then."""
    tab.wait_for_function(
        """() => {
            const all = [...document.querySelectorAll('[role=gridcell]')]
            const cells = all.map(one => one.innerText.trim())
            const kept = cells[cells.indexOf('kept') + 2]
            const ratio = document.querySelector('input[type=range]').value
            return Math.abs(parseInt(kept) - 100 * ratio) < 3
        }"""
    )
    tab.wait_for_timeout(300)
    return state(tab)


def test_upload_and_slide(page, files):
    first, _ = state(page)
    upload(page, files / 'good.png')
    seventy, figures = changed(page, first)
    assert len(seventy) == 6 and seventy[0] != first[0] and seventy[1] != first[1]
    assert re.match('(69|70)%, 50%, (29|30)%', figures['kept'])

    slider = page.get_by_label('range slider for keep ratio')
    box = slider.bounding_box()
    page.mouse.move(box['x'] + 0.68 * box['width'], box['y'] + box['height'] / 2)
    page.mouse.down()
    for share in (0.6, 0.5, 0.4, 0.3):
        page.mouse.move(box['x'] + share * box['width'], box['y'] + box['height'] / 2)
    page.mouse.up()
    less, costs = settled(page)
    assert float(slider.input_value()) < 0.5
    assert less[0] == seventy[0], 'the dense model does not care'
    # Both later predictors may have been at their lowest; the first one has less.
    assert less[2] != seventy[2] and less[1] != seventy[1]
    assert float(costs['GMACs']) < float(figures['GMACs'])

    slider.focus()
    for _ in range(20):
        page.keyboard.press('ArrowRight')
    _, costs = settled(page)
    assert float(slider.input_value()) == 1 and costs['kept'] == '100%, 100%, 100%'

    slider.fill('0.7')
    assert settled(page)[0] == seventy, 'the same picture and ratio give the same pictures'
    if 'MMDYN_SCREENSHOT' in os.environ:
        page.wait_for_timeout(1000)  # new results fade in
        page.screenshot(path=os.environ['MMDYN_SCREENSHOT'], full_page=True)


def test_sliding_back_and_forth_does_not_pile_up(page):
    asked = []
    page.on('request', lambda request: 'queue/join' in request.url and asked.append(request))
    before, _ = state(page)
    for value in ('0.2', '0.9', '0.3', '0.5', '0.8', '0.6', '0.9', '0.4'):
        page.get_by_label('range slider for keep ratio').fill(value)
    assert settled(page)[0] != before
    assert len(asked) <= 3


def test_an_example_is_picked(page):
    before, _ = state(page)
    page.locator('.gallery-item').nth(1).click()
    changed(page, before)


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('vast.png', '1500x1000, the limit is 1 million'),
        ('heavy.png', 'maximum allowed size'),
        ('text.txt', 'Invalid file type'),
    ],
)
def test_a_bad_file_is_refused_and_the_next_one_works(page, files, name, said):
    upload(page, files / name)
    page.get_by_text(said).wait_for()
    assert not page.locator(PICTURES).count()
    page.get_by_label('Close').first.click()
    upload(page, files / 'good.png')
    page.wait_for_selector(PICTURES)
