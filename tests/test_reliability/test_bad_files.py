"""Damaged, malicious and unusual files: handled like in the host, or named in one message."""

import copy
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.test_reliability.examples import some
from tests.test_reliability.tiny import LOADERS, call, check_message, save_weights
from tests.torch_line import EXPORTS

DONE, REFUSED = 0, 2
SECTION = 'Bad files'
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def encoded(pixels, kind='PNG'):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def bomb(width, height):
    """A PNG of a few bytes with a huge size in its header."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunks = (
        chunk(b'IHDR', header),
        chunk(b'IDAT', zlib.compress(bytes(999))),
        chunk(b'IEND', b''),
    )
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


PNG, JPEG = encoded(PICTURE), encoded(PICTURE, 'JPEG')
PICTURES = {
    'empty': b'',
    'text': b'no picture',
    'zeros': bytes(1000),
    'a pickle': b'\x80\x04.',
    'a web page': b'<html><body>404</body></html>',
    'header only': PNG[:20],
    'truncated PNG': PNG[: len(PNG) // 2],
    'truncated JPEG': JPEG[: len(JPEG) // 2],
    'bits flipped': PNG[:200] + bytes(255 ^ byte for byte in PNG[200:300]) + PNG[300:],
    'no pixels': bomb(0, 0),
    '400 million pixels in 100 bytes': bomb(20_000, 20_000),
    '4 billion pixels in 100 bytes': bomb(65_000, 65_000),
}
FULL = np.zeros((64, 64), np.uint8)
# Label maps, with expected texts for those that are refused.
LABELS = {
    'label 3 of 3 classes': (np.full_like(FULL, 3), 'label 3'),
    'one pixel of label 254': (np.where(np.eye(64) * np.eye(64)[0], 254, FULL), 'label 254 in 1'),
    'three channels': (PICTURE, '3 channels'),
    'another size than the picture': (FULL[:32], '64x32'),
    'empty': (b'', ''),
    'truncated': (PNG[: len(PNG) // 2], ''),
    'text': (b'no labels', ''),
    '4 billion pixels in 100 bytes': (bomb(65_000, 65_000), 'bomb'),
    'label 257': (np.full_like(FULL, 257, np.uint16), '257'),
    '16 bits, 65535 ignored': (np.full_like(FULL, 65535, np.uint16), None),
    '16 bits, small labels': (FULL.astype(np.uint16), None),
    'all ignored': (np.full_like(FULL, 255), None),
    'one class only': (FULL, None),
}


def annotation(**changes):
    """Change the first annotation."""
    return lambda content: content['annotations'][0].update(changes)


def annotations(**changes):
    """Change all annotations."""
    return lambda content: [one.update(changes) for one in content['annotations']]


def image(**changes):
    """Change the first image."""
    return lambda content: content['images'][0].update(changes)


def without(part, key):
    return lambda content: content[part][0].pop(key)


def none_of(part):
    return lambda content: content[part].clear()


# Changes to a COCO file, with expected texts for those that are refused.
COCO = {
    'an image that is missing': (image(file_name='gone.png'), 'images/gone.png'),
    'an image without a name': (without('images', 'file_name'), "'file_name'"),
    'an image without a size': (without('images', 'height'), "'height'"),
    'an image of another size': (image(height=32, width=32), None),
    'an image of size 0': (image(height=0, width=0), None),
    'an image without objects': (lambda content: content['annotations'].pop(), None),
    'a crowd only': (annotation(iscrowd=1), None),
    'crowds only, everywhere': (annotations(iscrowd=1), None),
    'a box without area': (annotation(bbox=[4, 4, 0, 0], area=0), None),
    'a box of negative width': (annotation(bbox=[4, 4, -5, 5]), None),
    'a box outside': (annotation(bbox=[100, 100, 20, 20]), None),
    'a box of NaN': (annotation(bbox=[float('nan')] * 4), None),
    'a box of two numbers': (annotation(bbox=[1, 2]), 'got 2'),
    'a box that is text': (annotation(bbox='abc'), 'got 3'),
    'no box': (without('annotations', 'bbox'), "'bbox'"),
    'no area': (without('annotations', 'area'), "'area'"),
    'no category': (without('annotations', 'category_id'), "'category_id'"),
    'an unknown category': (annotation(category_id=99), None),
    'an unknown image': (annotation(image_id=99), None),
    'an image number that is text': (image(id='a'), "'a'"),
    'text for an image': (annotation(image_id='10'), 'annotation 1'),
    'no word on crowds': (without('annotations', 'iscrowd'), 'annotation 1'),
    'a number twice': (annotation(id=2), ''),
    'no annotations': (none_of('annotations'), ''),
    'no images': (none_of('images'), ''),
    'no categories': (none_of('categories'), ''),
    'nothing': (b'', ''),
    'half a file': (0.5, ''),
    'bytes': (bytes(range(256)), ''),
    'a list': (b'[]', 'list'),
    'an empty dict': (b'{}', "'categories'"),
}
TRAINING_ONLY = 'no annotations'  # testing pictures without objects is allowed
SQUARE = [4, 4, 24, 4, 24, 24, 4, 24]
RUNS = dict(counts=[0, 64 * 64], size=[64, 64])
# Segmentations of the first annotation, with expected texts for those that are refused.
MASKS = {
    'a polygon': ([SQUARE], None),
    'run lengths': (RUNS, None),
    'an odd number of coordinates': ([SQUARE[:7]], None),
    'a polygon far away': ([[1e9, 1e9, 2e9, 1e9, 2e9, 2e9]], None),
    'none': (None, 'None'),
    'no polygon': ([], '[]'),
    'an empty polygon': ([[]], '[[]]'),
    'two points': ([SQUARE[:4]], '[[4, 4, 24, 4]]'),
    'text': ('abc', 'abc'),
    'runs that leave pixels over': (dict(RUNS, counts=[10, 20, 5]), '35 pixels'),
    'no runs': (dict(RUNS, counts=None), "'counts': None"),
    'packed runs that are none': (dict(RUNS, counts='zz!'), "'zz!'"),
    'runs of another picture': (dict(counts=[32 * 32], size=[32, 32]), '[32, 32]'),
    'a polygon without end': ([[0, 0, 1e9, 0, 1e9, 1e9]], '[[0, 0, 1000000000.0'),
}
RAN = []
"""The tools that were run, one entry per run."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    # Runs in the same second share a logger, whose stream pytest has closed.
    monkeypatch.setattr('logging.raiseExceptions', False)
    return tmp_path


def check(said, tool, *argv, file=''):
    """Run a tool; if ``said`` is not None it must fail with one message that names the file."""
    code, _, error = call(tool, *argv)
    assert code == (DONE if said is None else REFUSED), error
    if said is not None:
        check_message(error, [file, said])
    RAN.append(tool)


def derived(config, place, text=''):
    """A separate config per run, as runs of the same name and second share mmengine's state."""
    path = place / f'{place.name}.py'
    path.write_text(f"_base_ = '{config}'\n{text}")
    return path


def data_with(segmentor, place, folder, content):
    """A copy of the data with other content in the last file of a folder."""
    data = place / 'data'
    for name in ('images', 'annotations'):
        (data / name).mkdir(parents=True)
        for file in (segmentor.data / name).iterdir():
            (data / name / file.name).write_bytes(file.read_bytes())
    file = data / folder / '3.png'
    file.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return data, file


@pytest.mark.parametrize('kind', some(PICTURES, 4))
def test_pictures(segmentor, place, kind):
    data, file = data_with(segmentor, place, 'images', PICTURES[kind])
    config, weights = derived(segmentor.config, place), segmentor.checkpoint
    where = ('--work-dir', place / 'work', '--data-root', data)
    draw, images = ('--device', 'cpu', '--no-draw'), ('--images', data / 'images')
    check('', 'train', config, *where, file=file)
    check('', 'test', config, weights, *where, file=file)
    check('', 'infer', config, weights, file, *draw, file=file)
    check('', 'infer', config, weights, data / 'images', *draw, file=file)
    check('', 'benchmark', config, *images, '--device', 'cpu', file=file)
    check('', 'get_flops', config, *images, file=file)
    if EXPORTS:
        graph = ('--out', place / 'graph.onnx', '--images', file)
        check('', 'export', config, weights, *graph, file=file)
        assert not list(place.glob('*.onnx'))


@pytest.mark.parametrize('tool', ['sweep', 'benchmark', 'get_flops'])
def test_pictures_that_are_come_upon_late(segmentor, place, tool):
    data, file = data_with(segmentor, place, 'images', PICTURES['truncated PNG'])
    roots = [f'{kind}_dataloader.dataset.data_root={data}' for kind in ('val', 'test')]
    few = ('--rounds', 1, '--out', place / 'out', '--num-images', 1, '--keep-ratio', 0.7)
    argv = {
        'sweep': (segmentor.checkpoint, *few),
        'benchmark': ('--num-images', 4, '--device', 'cpu'),
        'get_flops': ('--num-images', 4),
    }
    config = derived(segmentor.config, place)
    check('', tool, config, *argv[tool], '--cfg-options', *roots, file=file)


@pytest.mark.parametrize('kind', some(LABELS, 3))
def test_label_maps(segmentor, place, kind):
    content, said = LABELS[kind]
    data, file = data_with(segmentor, place, 'annotations', content)
    config, where = derived(segmentor.config, place), ('--data-root', data)
    where = (*where, '--work-dir', place / 'work')
    check(said, 'train', config, *where, file=file)
    check(said, 'test', config, segmentor.checkpoint, *where, file=file)


def test_a_workers_bad_file_is_named(segmentor, place):
    data, file = data_with(segmentor, place, 'images', b'')
    workers = ('--cfg-options', 'train_dataloader.num_workers=1')
    where = ('--work-dir', place / 'work', '--data-root', data)
    check('', 'train', derived(segmentor.config, place), *where, *workers, file=file)


def coco_with(detector, place, change):
    """The data set with a changed annotation file; config lines that measure on it."""
    data = place / 'data'
    data.mkdir()
    (data / 'images').symlink_to(detector.data / 'images')
    content = json.loads((detector.data / 'all.json').read_text())
    if callable(change):
        change(content)
    text = json.dumps(content).encode()
    if isinstance(change, float):
        text = text[: int(change * len(text))]
    (data / 'all.json').write_bytes(change if isinstance(change, bytes) else text)
    lines = f"test_evaluator = dict(ann_file='{data}/all.json')\nval_evaluator = test_evaluator\n"
    return data, lines


@pytest.mark.parametrize('kind', some(COCO, 5))
def test_coco_files(detector, place, kind):
    change, said = COCO[kind]
    data, lines = coco_with(detector, place, change)
    config, where = derived(detector.config, place, lines), ('--data-root', data)
    where = (*where, '--work-dir', place / 'work')
    check(said, 'train', config, *where, file=data)
    said = None if kind == TRAINING_ONLY else said
    check(said, 'test', config, detector.checkpoint, *where, file=data)


@pytest.fixture(scope='module')
def mask_rcnn(tmp_path_factory, detector):
    """A config to be completed with a data set, and random weights."""
    folder = tmp_path_factory.mktemp('mask_rcnn')
    text = "_base_ = 'mmdyn::mask_rcnn_dynswin_mini.py'\n" + LOADERS.replace(
        'with_bbox=True', 'with_bbox=True, with_mask=True'
    ).replace("metric='bbox'", "metric=['bbox', 'segm']").replace(
        'train_cfg = dict(', "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', "
    )
    text += (
        'model = dict(\n    backbone=dict(embed_dims=8, num_heads=(1, 1, 2, 2)),\n'
        '    neck=dict(in_channels=[8, 16, 32, 64]),\n'
        '    roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))\n'
    )
    config = folder / 'config.py'
    config.write_text(text.replace('ROOT', str(detector.data)))
    return config, save_weights(config)


@pytest.mark.parametrize('kind', some(MASKS, 4))
def test_masks(detector, mask_rcnn, place, kind):
    mask, said = MASKS[kind]

    def change(content):
        annotations(segmentation=[SQUARE])(content)
        annotation(segmentation=copy.deepcopy(mask))(content)

    data, lines = coco_with(detector, place, change)
    config, weights = mask_rcnn
    config, where = derived(config, place, lines), ('--data-root', data)
    where = (*where, '--work-dir', place / 'work')
    check(said and '', 'train', config, *where, file='0.png')
    check(said, 'test', config, weights, *where, file='0.png')


def test_figures(figure):
    kinds = {'pictures': (PICTURES, 4), 'label maps': (LABELS, 3), 'masks': (MASKS, 4)}
    for what, (table, every) in {**kinds, 'COCO annotation files': (COCO, 5)}.items():
        figure(SECTION, f'kinds of {what}', len(some(table, every)))
    figure(SECTION, 'runs of the tools, each done or ended with the file named', len(RAN))
