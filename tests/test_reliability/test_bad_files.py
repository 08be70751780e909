"""Damaged, hostile and unusual files: handled as the host would, or named in one message."""

import copy
import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmdyn.engine.loading import load_model
from tests.test_reliability.tiny import LOADERS, call, check_message, make_detector, make_segmentor
from tests.torch_line import EXPORTS

DONE, REFUSED = 0, 2
SECTION = 'Bad files'
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def encoded(pixels, kind='PNG'):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def bomb(width, height):
    """A PNG of a few bytes that says that it has so many pixels."""

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
LABELS = {
    'label 3 of 3 classes': (np.full_like(FULL, 3), 'has label 3 in 4096 pixels'),
    'one pixel of label 254': (np.where(np.eye(64) * np.eye(64)[0], 254, FULL), 'label 254 in 1'),
    'three channels': (PICTURE, 'have 3 channels'),
    'another size than the picture': (FULL[:32], '64x32 pixels and its picture'),
    'empty': (b'', 'LoadAnnotations of the pipeline failed'),
    'truncated': (PNG[: len(PNG) // 2], 'LoadAnnotations of the pipeline failed'),
    'text': (b'no labels', 'LoadAnnotations of the pipeline failed'),
    '4 billion pixels in 100 bytes': (bomb(65_000, 65_000), 'decompression bomb'),
    'label 257': (np.full_like(FULL, 257, np.uint16), 'has label 257, and labels are read as 8'),
    '16 bits, 65535 ignored': (np.full_like(FULL, 65535, np.uint16), None),
    '16 bits, small labels': (FULL.astype(np.uint16), None),
    'all ignored': (np.full_like(FULL, 255), None),
    'one class only': (FULL, None),
}


def annotation(**changes):
    """Changes the first annotation."""
    return lambda content: content['annotations'][0].update(changes)


def annotations(**changes):
    """Changes all."""
    return lambda content: [one.update(changes) for one in content['annotations']]


def image(**changes):
    """Changes the first image."""
    return lambda content: content['images'][0].update(changes)


def without(part, key):
    return lambda content: content[part][0].pop(key)


def none_of(part):
    return lambda content: content[part].clear()


# What to change in a COCO file; the exit codes of training and of testing, and what is said.
COCO = {
    'an image that is missing': (image(file_name='gone.png'), REFUSED, REFUSED, 'images/gone.png'),
    'an image without a name': (without('images', 'file_name'), REFUSED, REFUSED, "'file_name'"),
    'an image without a size': (without('images', 'height'), REFUSED, REFUSED, "'height' is miss"),
    'an image of another size': (image(height=32, width=32), DONE, DONE, None),
    'an image of size 0': (image(height=0, width=0), DONE, DONE, None),
    'an image without objects': (lambda content: content['annotations'].pop(), DONE, DONE, None),
    'a crowd only': (annotation(iscrowd=1), DONE, DONE, None),
    'crowds only, everywhere': (annotations(iscrowd=1), DONE, DONE, None),
    'a box without area': (annotation(bbox=[4, 4, 0, 0], area=0), DONE, DONE, None),
    'a box of negative width': (annotation(bbox=[4, 4, -5, 5]), DONE, DONE, None),
    'a box outside': (annotation(bbox=[100, 100, 20, 20]), DONE, DONE, None),
    'a box of NaN': (annotation(bbox=[float('nan')] * 4), DONE, DONE, None),
    'a box of two numbers': (annotation(bbox=[1, 2]), REFUSED, REFUSED, 'expected 4, got 2'),
    'a box that is text': (annotation(bbox='abc'), REFUSED, REFUSED, 'expected 4, got 3'),
    'no box': (without('annotations', 'bbox'), REFUSED, REFUSED, "'bbox' is missing"),
    'no area': (without('annotations', 'area'), REFUSED, REFUSED, "'area' is missing"),
    'no category': (without('annotations', 'category_id'), REFUSED, REFUSED, "'category_id' is"),
    'an unknown category': (annotation(category_id=99), DONE, DONE, None),
    'an unknown image': (annotation(image_id=99), DONE, DONE, None),
    'an image number that is text': (image(id='a'), REFUSED, REFUSED, "id of images is 'a'"),
    'text for an image': (annotation(image_id='10'), REFUSED, REFUSED, 'annotation 1 of image'),
    'no word on crowds': (without('annotations', 'iscrowd'), REFUSED, REFUSED, 'annotation 1 of'),
    'a number twice': (annotation(id=2), REFUSED, REFUSED, 'not unique'),
    'no annotations': (none_of('annotations'), REFUSED, DONE, 'leaves images over'),
    'no images': (none_of('images'), REFUSED, REFUSED, 'leaves images over'),
    'no categories': (none_of('categories'), REFUSED, REFUSED, 'leaves images over'),
    'nothing': (b'', REFUSED, REFUSED, 'Expecting value'),
    'half a file': (0.5, REFUSED, REFUSED, "data set can't be read, all.json in"),
    'bytes': (bytes(range(256)), REFUSED, REFUSED, "codec can't decode"),
    'a list': (b'[]', REFUSED, REFUSED, "<class 'list'> not supported"),
    'an empty dict': (b'{}', REFUSED, REFUSED, "'categories' is missing"),
}
SQUARE = [4, 4, 24, 4, 24, 24, 4, 24]
RUNS = dict(counts=[0, 64 * 64], size=[64, 64])
# The first annotation's segmentation; the exit codes of training and of testing, and what is said.
MASKS = {
    'a polygon': ([SQUARE], DONE, DONE, None),
    'run lengths': (RUNS, DONE, DONE, None),
    'an odd number of coordinates': ([SQUARE[:7]], DONE, DONE, None),
    'a polygon far away': ([[1e9, 1e9, 2e9, 1e9, 2e9, 2e9]], DONE, DONE, None),
    'none': (None, REFUSED, REFUSED, "'segmentation' is None"),
    'no polygon': ([], REFUSED, REFUSED, "'segmentation' is []"),
    'an empty polygon': ([[]], REFUSED, REFUSED, "'segmentation' is [[]]"),
    'two points': ([SQUARE[:4]], REFUSED, REFUSED, "'segmentation' is [[4, 4, 24, 4]]"),
    'text': ('abc', REFUSED, REFUSED, "'segmentation' is 'abc'"),
    'runs that leave pixels over': (
        dict(RUNS, counts=[10, 20, 5]),
        REFUSED,
        REFUSED,
        'add up to 35 pixels, the image has 4096',
    ),
    'no runs': (dict(RUNS, counts=None), REFUSED, REFUSED, "'counts': None"),
    'packed runs that are none': (dict(RUNS, counts='zz!'), REFUSED, REFUSED, "'counts': 'zz!'"),
    'runs of another picture': (
        dict(counts=[32 * 32], size=[32, 32]),
        REFUSED,
        REFUSED,
        "'size': [32, 32]",
    ),
    'a polygon without end': ([[0, 0, 1e9, 0, 1e9, 1e9]], REFUSED, REFUSED, '[[0, 0, 1000000000.0'),
}
_DONE = {}
NIGHTLY = os.environ.get('MMDYN_NIGHTLY') == '1'


def some(kinds):
    """All at night, else a third."""
    return list(kinds)[:: 1 if NIGHTLY else 3]


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    return make_segmentor(tmp_path_factory.mktemp('segmentor'))


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return make_detector(tmp_path_factory.mktemp('detector'))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the tools run."""
    monkeypatch.chdir(tmp_path)
    # Runs of one second in one process share a logger, whose stream pytest has closed.
    monkeypatch.setattr('logging.raiseExceptions', False)
    return tmp_path


def check(expected, tool, *argv, said=()):
    """Runs a tool; it ends as expected, in one message if it refuses."""
    code, _, error = call(tool, *argv)
    assert code == expected, error
    if expected == REFUSED:
        check_message(error, said)
    _DONE[tool] = _DONE.get(tool, 0) + 1


def derived(config, place, text=''):
    """A config of its own for a run: those of one name and second share what mmengine keeps."""
    path = place / f'{place.name}.py'
    path.write_text(f"_base_ = '{config}'\n{text}")
    return path


def data_with(segmentor, place, folder, content):
    """A copy of the data whose last file in a folder holds something else."""
    data = place / 'data'
    for name in ('images', 'annotations'):
        (data / name).mkdir(parents=True)
        for file in (segmentor.data / name).iterdir():
            (data / name / file.name).write_bytes(file.read_bytes())
    file = data / folder / '3.png'
    file.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return data, file


@pytest.mark.parametrize('kind', some(PICTURES))
def test_pictures(segmentor, place, kind):
    data, file = data_with(segmentor, place, 'images', PICTURES[kind])
    config, weights = derived(segmentor.config, place), segmentor.checkpoint
    where, cpu = ('--data-root', data), ('--device', 'cpu')
    said = [file]
    check(REFUSED, 'train', config, '--work-dir', place / 'work', *where, said=said)
    check(REFUSED, 'test', config, weights, '--work-dir', place / 'work', *where, said=said)
    check(REFUSED, 'infer', config, weights, file, *cpu, '--no-draw', said=said)
    check(REFUSED, 'infer', config, weights, data / 'images', *cpu, '--no-draw', said=said)
    check(REFUSED, 'benchmark', config, '--images', data / 'images', *cpu, said=said)
    check(REFUSED, 'get_flops', config, '--images', data / 'images', said=said)
    if EXPORTS:
        graph = ('--out', place / 'graph.onnx')
        check(REFUSED, 'export', config, weights, *graph, '--images', file, said=said)
        assert not list(place.glob('*.onnx'))


@pytest.mark.parametrize('tool', ['sweep', 'benchmark', 'get_flops'])
def test_pictures_that_are_come_upon_late(segmentor, place, tool):
    data, file = data_with(segmentor, place, 'images', PICTURES['truncated PNG'])
    loaders = [f'{kind}_dataloader.dataset.data_root={data}' for kind in ('val', 'test')]
    config, weights = derived(segmentor.config, place), segmentor.checkpoint
    few = ('--rounds', 1, '--out', place / 'out')
    argv = {
        'sweep': [config, weights, *few, '--num-images', 1, '--keep-ratio', 0.7],
        'benchmark': [config, '--num-images', 4, '--device', 'cpu'],
        'get_flops': [config, '--num-images', 4],
    }
    check(REFUSED, tool, *argv[tool], '--cfg-options', *loaders, said=[file])


@pytest.mark.parametrize('kind', LABELS)
def test_label_maps(segmentor, place, kind):
    content, said = LABELS[kind]
    data, file = data_with(segmentor, place, 'annotations', content)
    config, expected = derived(segmentor.config, place), REFUSED if said else DONE
    where = ('--work-dir', place / 'work', '--data-root', data)
    check(expected, 'train', config, *where, said=[file, said])
    check(expected, 'test', config, segmentor.checkpoint, *where, said=[file, said])


def test_a_workers_bad_file_is_named(segmentor, place):
    data, file = data_with(segmentor, place, 'images', b'')
    workers = ('--cfg-options', 'train_dataloader.num_workers=1')
    where = ('--work-dir', place / 'work', '--data-root', data)
    check(REFUSED, 'train', derived(segmentor.config, place), *where, *workers, said=[file])


def coco_with(detector, place, change):
    """The data set with its annotation file changed; lines of a config that measure with it."""
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


@pytest.mark.parametrize('kind', some(COCO))
def test_coco_files(detector, place, kind):
    change, training, testing, said = COCO[kind]
    data, lines = coco_with(detector, place, change)
    config, where = derived(detector.config, place, lines), ('--data-root', data)
    said = [data, said]
    check(training, 'train', config, '--work-dir', place / 'work', *where, said=said)
    where += ('--work-dir', place / 'work')
    check(testing, 'test', config, detector.checkpoint, *where, said=said)


@pytest.fixture(scope='module')
def mask_rcnn(tmp_path_factory, detector):
    """Its config, to be filled with a data set, and random weights."""
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
    weights = folder / 'weights.pth'
    torch.save(dict(state_dict=load_model(str(config)).model.state_dict()), weights)
    return config, weights


@pytest.mark.parametrize('kind', some(MASKS))
def test_masks(detector, mask_rcnn, place, kind):
    mask, training, testing, said = MASKS[kind]

    def change(content):
        annotations(segmentation=[SQUARE])(content)
        annotation(segmentation=copy.deepcopy(mask))(content)

    data, lines = coco_with(detector, place, change)
    config, weights = mask_rcnn
    config = derived(config, place, lines)
    where = ('--work-dir', place / 'work', '--data-root', data)
    check(training, 'train', config, *where, said=['0.png'])
    check(testing, 'test', config, weights, *where, said=['annotation 1 of image 0.png', said])


def test_figures(figure):
    figure(SECTION, 'kinds of label maps', len(LABELS))
    for what, kinds in (
        ('pictures', PICTURES),
        ('COCO annotation files', COCO),
        ('masks in them', MASKS),
    ):
        figure(SECTION, f'kinds of {what}', len(some(kinds)))
    for tool, count in _DONE.items():
        figure(SECTION, f'runs of {tool}', f'{count}, each done or ended with the file named')
