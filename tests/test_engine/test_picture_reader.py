"""Reading of pictures as in a config's pipeline: files, PIL images and arrays."""

import math
import os
import re

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import EpsImagePlugin, Image

pytest.importorskip('mmseg')

from mmdyn.engine.picture_reader import Reader, pictures_in, reader_of
from mmdyn.errors import BadDataError
from mmdyn.registry import TRANSFORMS

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (40, 60, 4), dtype=np.uint8)
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n'


def config(first=None, channels=3, mean=(0.0,), **dataset):
    """The settings of a config that affect reading."""
    first = first or dict(type='LoadImageFromFile')
    pipeline = [first, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                backbone=dict(type='mmdyn.DynamicSwin', in_channels=channels),
                data_preprocessor=dict(type='SegDataPreProcessor', mean=list(mean)),
            ),
            test_dataloader=dict(dataset=dict(type='BaseSegDataset', pipeline=pipeline, **dataset)),
        )
    )


COLOURS = Image.fromarray(COLOUR[..., :3])
PIXELS = {
    'colour': COLOURS,
    'grey': Image.fromarray(COLOUR[..., 0]),
    'palette': COLOURS.quantize(16),
    'black and white': Image.fromarray(COLOUR[..., 0]).convert('1'),
    'transparent': Image.fromarray(COLOUR),
    'grey and transparent': Image.fromarray(COLOUR).convert('LA'),
    '16 bits': Image.fromarray((COLOUR[..., 0].astype(np.uint16) << 8) + COLOUR[..., 1]),
}
LOADERS = {
    'usual': dict(),
    'grey': dict(color_type='grayscale'),
    'unchanged': dict(color_type='unchanged'),
    'not turned': dict(color_type='color_ignore_orientation'),
    'pillow': dict(imdecode_backend='pillow'),
    'floats': dict(to_float32=True),
}


def reader_by(loader, **settings):
    return reader_of(config(dict(type='LoadImageFromFile', **LOADERS[loader]), **settings))


def check_same(reader, loader, file):
    """A file, its PIL image, the same in memory, and the array give the same result."""
    expected = LoadImageFromFile(**LOADERS[loader])(dict(img_path=str(file)))['img']
    image = Image.open(file)
    image.load()
    in_memory = image.copy()
    in_memory.getexif().update(image.getexif())
    read = reader.read(file)
    for picture in (read, *map(reader.read_image, (image, in_memory)), reader.take(read.image)):
        assert picture.image.dtype == expected.dtype
        assert np.array_equal(picture.image, expected)
        packed = reader.pack(picture)
        assert packed['data_samples'].ori_shape == expected.shape[:2]
        assert torch.equal(packed['inputs'], reader.pack(read)['inputs'])
    return expected


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('pixels', PIXELS)
def test_a_file_an_image_and_an_array_are_read_alike(tmp_path, pixels, loader):
    PIXELS[pixels].save(tmp_path / 'one.png')
    cfg = config(dict(type='LoadImageFromFile', **LOADERS[loader]))
    cfg.model.data_preprocessor.type = OwnPreprocessor  # any number of channels
    check_same(reader_of(cfg), loader, tmp_path / 'one.png')


@pytest.mark.parametrize('loader', ['usual', 'unchanged', 'not turned', 'pillow'])
@pytest.mark.parametrize('number', range(1, 9))
@pytest.mark.parametrize('kind', ['jpg', 'png'])
def test_as_the_camera_was_held(tmp_path, number, loader, kind):
    exif = Image.Exif()
    exif[274] = number
    COLOURS.save(tmp_path / f'one.{kind}', exif=exif)
    image = check_same(reader_by(loader), loader, tmp_path / f'one.{kind}')
    upright = number < 5 or loader in ('unchanged', 'not turned')
    assert image.shape == ((40, 60, 3) if upright else (60, 40, 3))


@pytest.mark.parametrize('kind', ['webp', 'tiff', 'bmp'])
def test_a_changed_image_is_read_as_changed(tmp_path, kind):
    COLOURS.save(tmp_path / f'one.{kind}')
    painted = Image.open(tmp_path / f'one.{kind}')
    painted.paste((1, 2, 3), (0, 0, 60, 60))
    assert (Reader().read_image(painted).image == (3, 2, 1)).all()


def test_sixteen_bits_keep_their_order():
    grey = np.array([[0, 0x80FF, 0xFFFF]], np.uint16)
    for image in (Image.fromarray(grey), Image.fromarray(grey.astype(np.int32))):
        assert Reader().read_image(image).image[0, :, 0].tolist() == [0, 0x80, 0xFF]
        own = Reader(LoadImageFromFile(color_type='unchanged')).read_image(image)
        assert np.array_equal(own.image, grey)
    floats = Image.fromarray(np.array([[0.25, 70000.5]], np.float32))
    own = Reader(LoadImageFromFile(color_type='unchanged')).read_image(floats)
    assert own.image.tolist() == [[0.25, 70000.5]]


def test_four_channels_of_16_bits(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    values = RNG.integers(0, 4000, (40, 60, 4), dtype=np.uint16)
    tifffile.imwrite(tmp_path / 'four.tif', values)
    for backend in ('tifffile', 'cv2'):
        first = dict(color_type='unchanged', imdecode_backend=backend, to_float32=True)
        reader = reader_of(config(dict(type='LoadImageFromFile', **first), channels=4))
        assert pictures_in(tmp_path, reader) == [tmp_path / 'four.tif']
        picture = reader.read(tmp_path / 'four.tif')
        expected = values if backend == 'tifffile' else values[..., (2, 1, 0, 3)]
        assert picture.image.dtype == np.float32 and np.array_equal(picture.image, expected)
        assert reader.pack(picture)['inputs'].shape == (4, 40, 60)
        assert np.array_equal(reader.take(expected).image, picture.image)
        assert picture.rgb.shape == (40, 60, 3) and picture.rgb.dtype == np.uint8
    with pytest.raises(BadDataError, match=r'four\.tif.*60x40.*0\.001 million'):
        Reader(max_pixels=0.001).read(tmp_path / 'four.tif')


@pytest.mark.parametrize('loader', ['usual', 'grey'])
def test_other_channels_than_the_models_are_refused_with_the_numbers(tmp_path, loader):
    COLOURS.save(tmp_path / 'one.png')
    reader = reader_by(loader, channels=5)
    with pytest.raises(BadDataError, match=r'one\.png.*\(40, 60.*, 5\)'):
        reader.read(tmp_path / 'one.png')
    for shape in ((40, 60, 3), (40, 60), (5, 40, 60), (0, 60, 5)):
        with pytest.raises(ValueError, match=r'5\).*' + re.escape(str(shape))):
            reader.take(np.zeros(shape, np.uint8))


@pytest.mark.parametrize('dtype', [bool, np.float64, np.uint16, complex])
def test_an_array_is_of_the_kind_that_the_loader_gives(dtype):
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        reader_of(config()).take(np.zeros((4, 4, 3), dtype))
    unchanged = reader_by('unchanged')
    if np.dtype(dtype).kind in 'uf':
        assert unchanged.take(np.zeros((4, 4, 3), dtype)).image.dtype == dtype


class OwnPreprocessor:
    """A custom one, which may add channels."""


@TRANSFORMS.register_module()
class ReadNumbers:
    """A custom loader."""

    def __call__(self, results):
        image = np.load(results['img_path'])
        hw = image.shape[:2]
        return {**results, 'img': image, 'img_shape': hw, 'ori_shape': hw, 'sensor': 'B4'}


@TRANSFORMS.register_module()
class NeedsSensor:
    """A step that needs results of the loader."""

    def __call__(self, results):
        assert results['sensor'] == 'B4'
        return results


def test_a_loader_of_ones_own(tmp_path):
    values = RNG.random((20, 30, 6))
    np.save(tmp_path / 'one.npy', values)
    cfg = config(dict(type='mmdyn.ReadNumbers'), channels=6, img_suffix='_b4.npy')
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='mmdyn.NeedsSensor'))
    reader = reader_of(cfg)
    assert pictures_in(tmp_path, reader) == [tmp_path / 'one.npy']
    picture = reader.read(tmp_path / 'one.npy')
    assert np.array_equal(picture.image, values)
    assert reader.pack(picture)['inputs'].shape == (6, 20, 30)
    assert reader.pack(picture)['data_samples'].img_path == str(tmp_path / 'one.npy')


def test_a_pipeline_that_reads_nothing_is_refused():
    with pytest.raises(ValueError, match='PackSegInputs'):
        reader_of(config(dict(type='PackSegInputs')))


def test_pictures_are_read_as_by_the_first_of_several_data_sets(tmp_path):
    COLOURS.save(tmp_path / 'one.png')
    grey = dict(type='LoadImageFromFile', color_type='grayscale')
    first, second = (config(step, channels=1) for step in (grey, None))
    parts = [cfg.test_dataloader.dataset for cfg in (first, second)]
    first.test_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    assert reader_of(first).read(tmp_path / 'one.png').image.shape == (40, 60)


def test_a_step_that_fails_names_the_picture(tmp_path):
    Image.new('RGB', (5000, 1)).save(tmp_path / 'line.png')
    cfg = config()
    cfg.test_dataloader.dataset.pipeline[1] = dict(type='Resize', scale=(64, 16), keep_ratio=True)
    reader = reader_of(cfg)
    with pytest.raises(BadDataError, match=r'line\.png.*Resize'):
        reader.pack(reader.read(tmp_path / 'line.png'))


def test_too_many_pixels_are_known_before_anything_is_decoded(tmp_path, monkeypatch):
    Image.new('1', (1100, 1000)).save(tmp_path / 'large.png')
    image = Image.open(tmp_path / 'large.png')
    with monkeypatch.context() as patch:
        patch.setattr(LoadImageFromFile, 'transform', lambda *_: pytest.fail('decoded'))
        patch.setattr(Image.Image, 'tobytes', lambda *_: pytest.fail('decoded'))
        reader = Reader(max_pixels=1.0)
        for read, source in ((reader.read, tmp_path / 'large.png'), (reader.read_image, image)):
            with pytest.raises(BadDataError, match=r'large\.png.*1100x1000.*1 million'):
                read(source)
        # Pillow refuses twice this size and more, without giving the size.
        patch.setattr(Image, 'MAX_IMAGE_PIXELS', 510_000)
        with pytest.raises(BadDataError, match=r'large\.png.*1100000'):
            reader.read(tmp_path / 'large.png')
    for most in (1.1, math.inf):
        assert Reader(max_pixels=most).read(tmp_path / 'large.png').image.shape == (1000, 1100, 3)
    for most in (0, -1, math.nan):
        with pytest.raises(ValueError, match=f'got {most}'):
            Reader(max_pixels=most)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_no_file_is_given_to_ghostscript(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('it ran'))
    binary = b'\xc5\xd0\xd3\xc6' + bytes([32, 0, 0, 0, len(EPS), 0, 0, 0]) + bytes(20) + EPS
    reader = Reader(LoadImageFromFile(imdecode_backend=backend))
    for content in (EPS, binary):
        (tmp_path / 'x.png').write_bytes(content)
        for read in (reader.read, lambda _: pictures_in(tmp_path, reader)):
            with pytest.raises(BadDataError, match=r'x\.png is not a readable picture'):
                read(tmp_path / 'x.png')
        image = Image.open(tmp_path / 'x.png')
        with pytest.raises(BadDataError, match='PostScript'):
            reader.read_image(image)


def test_a_broken_or_closed_image_is_refused(tmp_path):
    COLOURS.save(tmp_path / 'one.png')
    content = (tmp_path / 'one.png').read_bytes()
    (tmp_path / 'half.png').write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / 'one.png') as closed:
        pass
    unwritable = Image.new('RGB', (4, 4))
    unwritable.getexif()[274] = 'left'
    for image, name in (
        (Image.open(tmp_path / 'half.png'), 'half.png'),
        (closed, 'one.png'),
        (Image.new('RGB', (0, 5)), 'array'),
        (unwritable, 'array'),
    ):
        with pytest.raises(BadDataError, match=f'{name} is not a readable picture'):
            Reader().read_image(image)


def test_only_files_are_read(tmp_path):
    COLOURS.save(tmp_path / 'one.png')
    (tmp_path / 'folder.png').mkdir()
    assert pictures_in(tmp_path, Reader()) == [tmp_path / 'one.png']
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'empty.png').touch()
    for name, why in (('pipe', 'not a file'), ('empty', 'empty')):
        with pytest.raises(BadDataError, match=rf'{name}\.png.*{why}'):
            Reader().check(tmp_path / f'{name}.png')
    with pytest.raises(BadDataError, match=r'empty\.png'):
        pictures_in(tmp_path, Reader())


def test_one_channel_becomes_several_where_mmseg_normalises_so(tmp_path):
    PIXELS['grey'].save(tmp_path / 'one.png')
    first = dict(type='LoadImageFromFile', color_type='grayscale')
    reader = reader_of(config(first, mean=(1.0, 2.0, 3.0)))
    assert reader.read(tmp_path / 'one.png').image.shape == (40, 60)
    assert reader.take(COLOUR[..., 0]).image.shape == (40, 60)
    with pytest.raises(BadDataError, match=r'\(40, 60\)'):
        reader_of(config(first, mean=(1.0,))).read(tmp_path / 'one.png')


def test_bytes_in_either_order():
    values = np.array([[1, 2, 40000]], np.uint16)
    taken = reader_by('unchanged', channels=1).take(values.astype('>u2')).image
    assert taken.dtype == values.dtype and np.array_equal(taken, values)
