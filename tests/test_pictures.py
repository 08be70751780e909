"""Sizes of picture files, and conversion of arrays to RGB."""

import numpy as np
import pytest

from mmdyn.pictures import Picture, as_rgb, resized, size_of

RNG = np.random.default_rng(0)


def test_eight_bits_are_shown_as_they_are():
    image = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(Picture('one', image).rgb, image[..., ::-1])
    for channels in (4, 7):
        more = np.dstack([image, *[image[..., 0]] * (channels - 3)])
        assert np.array_equal(as_rgb(more), image[..., ::-1])
    for grey in (image[..., 0], image[..., :1], image[..., :2]):
        assert np.array_equal(as_rgb(grey), image[..., [0, 0, 0]])
    # Read with to_float32=True.
    assert np.array_equal(as_rgb(image.astype(np.float32)), image[..., ::-1])


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32, np.float64])
def test_other_values_are_scaled(dtype):
    image = np.linspace(500, 3500, 300 * 400 * 4).reshape(300, 400, 4).astype(dtype)
    image[0, 0] = 60000  # a single bright pixel does not affect the others
    shown = as_rgb(image)
    assert shown.shape == (300, 400, 3) and shown.dtype == np.uint8
    assert shown[0, 0].tolist() == [255] * 3 and shown[0, 1].max() == 0
    assert shown[-1, -1].min() == 255 and 120 < shown[150, 0, 0] < 135


@pytest.mark.filterwarnings('error')
def test_whatever_is_no_number_is_black():
    image = np.linspace(0, 1, 600, dtype=np.float32).reshape(10, 20, 3)
    for value in (np.nan, np.inf, -np.inf):
        image[0, 0] = value
        assert as_rgb(image)[0, 0].tolist() == [0, 0, 0] and as_rgb(image)[-1].min() > 200
        assert not as_rgb(np.full((4, 5, 3), value, np.float32)).any()
    assert not as_rgb(np.full((4, 5), 3000, np.uint16)).any(), 'all alike'


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.float64])
@pytest.mark.parametrize('shape', [(6, 8), (6, 8, 1), (6, 8, 3), (6, 8, 7)])
@pytest.mark.parametrize('hw', [(3, 4), (12, 5), (1, 1)])
def test_resized(dtype, shape, hw):
    made = resized(np.full(shape, 200, dtype), hw)
    assert made.shape == (*hw, *shape[2:]) and (made == 200).all()
    assert made.dtype == (dtype if np.dtype(dtype).kind == 'u' else np.float32)


@pytest.mark.parametrize('options', [{}, dict(bigtiff=True), dict(byteorder='>')])
def test_the_size_of_a_tiff_file_that_pillow_does_not_know(tmp_path, options):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'x.png', np.zeros((6, 8, 4), np.uint16), **options)
    assert size_of(tmp_path / 'x.png') == (6, 8)
    content = (tmp_path / 'x.png').read_bytes()
    (tmp_path / 'x.png').write_bytes(content[:12])
    with pytest.raises(ValueError, match='damaged'):
        size_of(tmp_path / 'x.png')
