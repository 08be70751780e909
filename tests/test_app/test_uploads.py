"""Uploaded files: read upright and within limits, or refused with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from mmdyn.app.uploads import read_upload
from mmdyn.engine.picture_reader import Reader
from mmdyn.errors import BadDataError

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
def read(tmp_path):
    def read_content(content):
        (tmp_path / 'file').write_bytes(content)
        return read_upload(tmp_path / 'file', Reader(channels=3, max_pixels=0.1), 200)

    return read_content


def test_blue_first_upright_and_shrunk(read):
    picture, hw = read(encoded(Image.new('RGB', (30, 20), (1, 2, 3))))
    assert hw == (20, 30) and picture.image.shape == (20, 30, 3)
    assert picture.image.dtype == np.uint8 and tuple(picture.image[0, 0]) == (3, 2, 1)
    picture, hw = read(encoded(gradient(400, 100)))
    assert hw == (100, 400) and picture.image.shape == (50, 200, 3)
    picture, hw = read(encoded(gradient(60, 40), 'JPEG', exif=UPRIGHT))
    assert hw == (60, 40) and picture.image.shape == (60, 40, 3)
    red = picture.image[..., 2].astype(int)
    assert red[-1].mean() > red[0].mean() + 150, 'left became top'


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'I;16', '1', 'CMYK'])
def test_any_kind_of_pixels(read, mode):
    kind = 'TIFF' if mode == 'CMYK' else 'PNG'
    assert read(encoded(Image.new(mode, (9, 7)), kind))[0].image.shape == (7, 9, 3)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparent_parts_are_white(read, mode):
    image = Image.new('RGBA', (9, 7), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 7))
    picture, _ = read(encoded(image.convert(mode)))
    assert picture.image[0, 0].tolist() == [255, 255, 255]
    assert picture.image[0, 8, 2] == picture.image[0, 8].max() < 256


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'', 'picture'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'picture'),
        (b'P6 9 9 255 ' + bytes(243), 'picture'),  # PPM, whose size nobody checked
        # Pillow would have Ghostscript run it.
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', 'picture'),
        (b'\x89PNG\r\n\x1a\n' + 99 * b'!', 'picture'),
        (encoded(gradient(90, 90))[:-200], 'picture'),
        (encoded(gradient(90, 90).convert('RGBA'))[:-200], 'picture'),
        (encoded(gradient(400, 300)), '400x300, the limit is 0.1 million'),
        (encoded(Image.new('1', (20000, 20000))), 'the limit is 0.1 million'),
    ],
)
def test_refused_without_the_servers_folder(read, content, said, tmp_path):
    with pytest.raises(BadDataError, match=f'^file .*{said}') as refused:
        read(content)
    assert str(tmp_path) not in str(refused.value)


def test_a_deleted_upload(tmp_path):
    with pytest.raises(BadDataError, match=r'^gone\.png'):
        read_upload(tmp_path / 'gone.png', Reader(channels=3), 200)
