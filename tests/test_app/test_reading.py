"""Uploaded files: read upright and within limits, or refused with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from mmdyn.app.reading import Limits, read_upload


def encoded(image, kind='PNG', **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width, height):
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 200, width)
    return Image.fromarray(image)


def test_a_picture_comes_blue_first(tmp_path, limits):
    (tmp_path / 'picture').write_bytes(encoded(Image.new('RGB', (30, 20), (1, 2, 3))))
    picture, hw = read_upload(tmp_path / 'picture', limits)
    assert hw == (20, 30) and picture.image.shape == (20, 30, 3)
    assert picture.image.dtype == np.uint8 and tuple(picture.image[0, 0]) == (3, 2, 1)


def test_a_large_picture_is_shrunk_and_keeps_its_aspect(tmp_path, limits):
    (tmp_path / 'large').write_bytes(encoded(gradient(400, 100)))
    picture, hw = read_upload(tmp_path / 'large', limits)
    assert hw == (100, 400) and picture.image.shape == (50, 200, 3)


def test_a_camera_held_upright_gives_an_upright_picture(tmp_path, limits):
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    (tmp_path / 'photo').write_bytes(encoded(gradient(60, 40), 'JPEG', exif=exif))
    picture, hw = read_upload(tmp_path / 'photo', limits)
    assert hw == (60, 40) and picture.image.shape == (60, 40, 3)
    red = picture.image[..., 2].astype(int)
    assert red[-1].mean() > red[0].mean() + 150, 'left became top'


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'I;16', '1', 'CMYK'])
def test_any_kind_of_pixels(tmp_path, limits, mode):
    kind = 'TIFF' if mode == 'CMYK' else 'PNG'
    (tmp_path / 'picture').write_bytes(encoded(Image.new(mode, (9, 7)), kind))
    assert read_upload(tmp_path / 'picture', limits)[0].image.shape == (7, 9, 3)


def test_sixteen_bits_are_not_clipped(tmp_path, limits):
    grey = np.array([[0, 0x80FF, 0xFFFF]], np.uint16)
    (tmp_path / 'picture').write_bytes(encoded(Image.fromarray(grey)))
    picture, _ = read_upload(tmp_path / 'picture', limits)
    assert picture.image[0, :, 0].tolist() == [0, 0x80, 0xFF]


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_what_is_transparent_is_white(tmp_path, limits, mode):
    image = Image.new('RGBA', (9, 7), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 7))
    (tmp_path / 'picture').write_bytes(encoded(image.convert(mode)))
    picture, _ = read_upload(tmp_path / 'picture', limits)
    assert picture.image[0, 0].tolist() == [255, 255, 255]
    assert picture.image[0, 8, 2] == picture.image[0, 8].max() < 256


def test_a_deleted_upload_is_asked_for_again(tmp_path, limits):
    with pytest.raises(ValueError, match='no longer here: drop it again'):
        read_upload(tmp_path / 'gone.png', limits)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'', 'no picture'),
        (b'hello', 'no picture'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'no picture'),
        # Pillow would have Ghostscript run it.
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', 'no picture'),
        (b'\x89PNG\r\n\x1a\n' + 99 * b'!', 'no picture'),
        (encoded(gradient(90, 90))[:-200], 'broken'),
        (encoded(Image.new('F', (9, 7)), 'TIFF'), '32 bits a pixel'),
        (encoded(gradient(400, 300)), '400x300 pixels, the limit is 0.1 million'),
        (encoded(Image.new('1', (20000, 20000))), 'the limit is 0.1 million'),
    ],
)
def test_what_is_refused(tmp_path, limits, content, said):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_upload(tmp_path / 'file', limits)


def test_limits_make_sense():
    with pytest.raises(ValueError, match=r'upload must be above 0 and finite, got 0'):
        Limits(upload=0, pixels=1, side=10)
    assert Limits(upload=0.5, pixels=1, side=10).upload_bytes == 2**19
