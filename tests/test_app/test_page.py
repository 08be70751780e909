"""What the page shows of a picture, or says of one that can't be used."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('gradio')

import gradio as gr

from mmdyn.apis import DynamicInferencer
from mmdyn.app.comparing import Comparer
from mmdyn.app.page import make_update, read_picture
from mmdyn.engine.picture_reader import Reader
from mmdyn.errors import BadDataError
from mmdyn.visualization import predicted

UPRIGHT = Image.Exif()
UPRIGHT[274] = 6  # to be turned clockwise


def encoded(image, kind='PNG', **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width, height):
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 200, width)
    return Image.fromarray(image)


@pytest.fixture
def upload(tmp_path, picture, monkeypatch):
    """Of a picture, as gradio tells of it."""
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path))
    Image.fromarray(picture.rgb).save(tmp_path / 'good.png')
    return {'path': str(tmp_path / 'good.png')}


def test_pictures_and_figures(comparer, picture, upload):
    shown, figures, panels, colours = make_update(comparer, 200)(upload, 0.5)
    (dense, sparse), rows, macs = comparer(picture, keep_ratio=0.5)
    assert all(map(np.array_equal, shown['value'], map(predicted, (dense, sparse))))
    assert '160x128' in shown['label']
    # Three predictors, each of which keeps less, and how many kept a location.
    images, titles = zip(*panels, strict=True)
    dark = [image.mean() for image in images[:3]]
    assert len(images) == 4 and dark == sorted(dark, reverse=True) and '50%' in titles[0]
    figures = {name: values for name, *values in figures}
    assert figures['GMACs'] == [f'{row.gmacs:.3f}' for row in rows]
    assert figures['GMACs, backbone'] == [f'{one / 1e9:.3f}' for one in macs]
    assert {'ms', 'speed-up'} <= set(figures) and figures['kept'] == ['all', '50%, 30%, 10%']
    same = (dense.labels == sparse.labels).mean()
    assert figures['same class'][1] == f'{same:.1%} of pixels'
    assert {'kept by 0', 'kept by 3'} <= {name for name, _ in colours['value']}
    assert colours['color_map']['a'] == '#000000'


def test_instances_and_tiles(upload):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmcv.ops')
    options = {'model.test_cfg.rpn.max_per_img': 4}
    config = 'mmdyn::mask_rcnn_dynfpn_dynswin_mini.py'
    comparer = Comparer(DynamicInferencer(config, device='cpu', cfg_options=options), seconds=0)
    _, figures, panels, _ = make_update(comparer, 200)(upload, 0.5, 0.25)
    figures = {name: values for name, *values in figures}
    assert all(cell.isdecimal() for cell in figures['instances'])
    assert figures['kept'][1].endswith('25% of tiles') and len(panels) == 5


def test_no_picture(comparer):
    assert make_update(comparer, 200)(None, 0.7) == (None,) * 4


def test_a_bad_picture_is_named_without_the_servers_folder(comparer, upload, tmp_path):
    update = make_update(comparer, 200)
    for name in ('<b>broken.png', 'gone.png'):
        if name != 'gone.png':
            (tmp_path / name).write_bytes(b'nothing')
        with pytest.raises(gr.Error) as refused:
            update({'path': str(tmp_path / name)}, 0.7)
        said = refused.value.message
        assert 'not a readable picture' in said and str(tmp_path) not in said and '<b>' not in said
    assert update(upload, 0.7)[1]


def read(path):
    return read_picture(path, Reader(channels=3, max_pixels=0.1), 200)


def test_upright_and_shrunk(tmp_path):
    file = tmp_path / 'file'
    for image, options, shape in (
        (Image.new('RGB', (30, 20), (1, 2, 3)), {}, (20, 30, 3)),
        (gradient(400, 100), {}, (50, 200, 3)),
        (gradient(1, 300), {}, (200, 1, 3)),
        (gradient(60, 40), dict(kind='JPEG', exif=UPRIGHT), (60, 40, 3)),
    ):
        file.write_bytes(encoded(image, **options))
        assert read(file).image.shape == shape
    red = read(file).image[..., 2].astype(int)
    assert red[-1].mean() > red[0].mean() + 150, 'left became top'


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'readable picture'),
        (b'P6 9 9 255 ' + bytes(243), 'readable picture'),  # PPM, whose size nobody checked
        # Pillow would have Ghostscript run it.
        (
            b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n',
            'readable picture',
        ),
        (encoded(gradient(400, 300)), '400x300, the limit is 0.1 million'),
        (encoded(Image.new('1', (20000, 20000))), 'the limit is 0.1 million'),
    ],
)
def test_refused(tmp_path, content, said):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(BadDataError, match=f'file .*{said}'):
        read(tmp_path / 'file')
