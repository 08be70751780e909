"""MiniScenes: the renderer, the folder it is written to, and the mmseg data set on it."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.utils import register_all_modules
from PIL import Image
from pycocotools.coco import COCO

from mmdyn.datasets import MiniScenesDataset, mini_scenes
from mmdyn.datasets.mini_scenes import (
    CLASSES,
    PALETTE,
    STUFF_CLASSES,
    THING_CLASSES,
    build_mini_scenes,
    check_mini_scenes,
    render_scene,
)

TINY = dict(size=64, train=3, val=2, seed=0)


@pytest.fixture(scope='module')
def tiny_root(tmp_path_factory):
    return build_mini_scenes(tmp_path_factory.mktemp('data') / 'scenes', progress=False, **TINY)


@pytest.fixture(scope='module')
def default_scenes():
    """Sixteen of the validation scenes of the default data set."""
    return [render_scene((0, 1, index)) for index in range(16)]


def read_tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}


# -- renderer --------------------------------------------------------------------------


def test_scene_shapes_and_types():
    scene = render_scene(3, 96)
    assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
    assert scene.labels.shape == (96, 96) and scene.labels.dtype == np.uint8
    assert scene.labels.max() < len(CLASSES)
    for class_id, mask in scene.instances:
        assert CLASSES[class_id] in THING_CLASSES
        assert mask.shape == (96, 96) and mask.dtype == bool and mask.any()


def test_same_seed_same_scene_other_seed_other_scene():
    first, again, other = render_scene((7, 1)), render_scene((7, 1)), render_scene((7, 2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize('seed', range(4))
def test_a_seed_is_one_scene_at_every_size(seed):
    small, large = render_scene(seed, 64), render_scene(seed, 192)
    # Every third pixel of the large one has the centre of a pixel of the small one.
    agreement = (small.labels == large.labels[1::3, 1::3]).mean()
    assert agreement > 0.97


def test_instances_partition_the_thing_pixels(default_scenes):
    for scene in default_scenes:
        owners = np.sum([mask for _, mask in scene.instances], axis=0)
        assert np.array_equal(owners, scene.labels >= len(STUFF_CLASSES))
        for class_id, mask in scene.instances:
            assert (scene.labels[mask] == class_id).all()


def test_every_class_is_frequent(default_scenes):
    for class_id in range(len(CLASSES)):
        holders = sum((scene.labels == class_id).any() for scene in default_scenes)
        assert holders >= len(default_scenes) // 4, CLASSES[class_id]


def test_content_is_gathered_in_a_minority_of_the_area(default_scenes):
    things = np.stack([scene.labels for scene in default_scenes]) >= len(STUFF_CLASSES)
    assert 0.08 < things.mean() < 0.20
    for stride in (8, 16):
        cells = things.reshape(len(things), 128 // stride, stride, 128 // stride, stride)
        assert 0.15 < cells.any((2, 4)).mean() < 0.40


def test_colour_does_not_give_the_class_away(default_scenes):
    """The nearest mean colour of the six shapes names a shape hardly better than chance."""
    samples = [
        (class_id, scene.image[mask].mean(0))
        for scene in default_scenes
        for class_id, mask in scene.instances
    ]
    classes = np.array([class_id for class_id, _ in samples])
    colours = np.array([colour for _, colour in samples])
    # Half of the things state the mean colours, the others are named by them.
    learn = np.arange(len(classes)) % 2 == 0
    names = np.unique(classes)
    means = np.stack([colours[learn & (classes == c)].mean(0) for c in names])
    distance = np.linalg.norm(colours[~learn][:, None] - means, axis=-1)
    assert (names[distance.argmin(1)] == classes[~learn]).mean() < 0.4


@pytest.mark.parametrize('size, error', [(16, ValueError), (64.0, TypeError), (True, TypeError)])
def test_bad_size_is_refused(size, error):
    with pytest.raises(error, match='size must be'):
        render_scene(0, size)


def test_palette_has_a_colour_per_class():
    assert len({tuple(colour) for colour in PALETTE}) == len(CLASSES) == len(PALETTE)


# -- folder ----------------------------------------------------------------------------


def test_folder_holds_pictures_and_labels(tiny_root):
    for split, count in (('training', 3), ('validation', 2)):
        images = sorted((tiny_root / 'images' / split).iterdir())
        labels = sorted((tiny_root / 'annotations' / split).iterdir())
        assert [p.name for p in images] == [p.name for p in labels]
        assert len(images) == count
        assert np.asarray(Image.open(images[0])).shape == (64, 64, 3)
        assert np.asarray(Image.open(labels[0])).max() < len(CLASSES)


def test_same_parameters_same_bytes(tiny_root, tmp_path):
    again = build_mini_scenes(tmp_path / 'again', progress=False, **TINY)
    assert read_tree(again) == read_tree(tiny_root)
    other = build_mini_scenes(tmp_path / 'other', progress=False, **{**TINY, 'seed': 1})
    picture = 'images/training/000000.png'
    assert (other / picture).read_bytes() != (again / picture).read_bytes()


def test_splits_and_indices_differ(tiny_root):
    pictures = [p.read_bytes() for p in tiny_root.glob('images/*/*.png')]
    assert len(set(pictures)) == len(pictures) == 5


def test_coco_agrees_with_the_label_maps(tiny_root):
    for split in ('training', 'validation'):
        coco = COCO(str(tiny_root / f'instances_{split}.json'))
        assert [c['name'] for c in coco.loadCats(range(1, 7))] == list(THING_CLASSES)
        assert coco.getAnnIds()
        for image in coco.loadImgs(coco.getImgIds()):
            path = tiny_root / 'annotations' / split / image['file_name']
            labels = np.asarray(Image.open(path))
            covered = np.zeros(labels.shape, bool)
            for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
                mask = coco.annToMask(annotation).astype(bool)
                assert (labels[mask] == annotation['category_id'] + 3).all()
                assert mask.sum() == annotation['area'] > 0
                x, y, w, h = annotation['bbox']
                assert mask[y : y + h, x : x + w].sum() == mask.sum()
                assert mask[y].any() and mask[:, x].any()
                assert mask[y + h - 1].any() and mask[:, x + w - 1].any()
                covered |= mask
            # Only instances of a pixel or two may be missing.
            assert ((labels >= len(STUFF_CLASSES)) & ~covered).sum() < 10


def test_barely_visible_instances_are_dropped():
    labels = np.zeros((64, 64), np.uint8)
    masks = [np.zeros((64, 64), bool) for _ in range(2)]
    masks[0][0, 0] = True
    masks[1][:8, :8] = True
    coco = mini_scenes._empty_coco()
    instances = tuple(mini_scenes.Instance(4, mask) for mask in masks)
    scene = mini_scenes.Scene(np.zeros((64, 64, 3), np.uint8), labels, instances)
    mini_scenes._add_to_coco(coco, scene, 'x.png')
    assert [a['area'] for a in coco['annotations']] == [64]
    assert coco['annotations'][0]['segmentation']['counts'][0] == 0


def test_existing_folder_is_taken_as_it_is(tiny_root):
    before = (tiny_root / 'manifest.json').stat().st_mtime_ns
    assert build_mini_scenes(tiny_root, **TINY) == tiny_root
    assert (tiny_root / 'manifest.json').stat().st_mtime_ns == before


def test_other_parameters_are_refused_by_name(tiny_root):
    with pytest.raises(ValueError, match=r'size is 64, wanted 96.*Delete the folder'):
        build_mini_scenes(tiny_root, **{**TINY, 'size': 96})


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda r: (r / 'images/training/000001.png').write_bytes(b'x'), 'images/training/000001'),
        (lambda r: (r / 'annotations/validation/000000.png').unlink(), 'lacks annotations/valid'),
        (lambda r: (r / 'images/training/mine.png').write_bytes(b'x'), 'no part of it: images'),
        (lambda r: (r / 'manifest.json').write_text('{}'), 'damaged manifest'),
        (lambda r: (r / 'manifest.json').unlink(), 'not a MiniScenes folder'),
        (
            lambda r: (r / 'manifest.json').write_text(
                (r / 'manifest.json').read_text().replace('"format": ', '"format": 9')
            ),
            'has format 9',
        ),
    ],
)
def test_a_changed_folder_is_refused(tmp_path, damage, message):
    root = build_mini_scenes(tmp_path / 'scenes', progress=False, **TINY)
    damage(root)
    with pytest.raises(ValueError, match=message) as caught:
        build_mini_scenes(root, progress=False, **TINY)
    assert str(root) in str(caught.value) and 'choose another data_root' in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('precious')
    with pytest.raises(ValueError, match='not a MiniScenes folder'):
        build_mini_scenes(tmp_path, **TINY)
    assert os.listdir(tmp_path) == ['mine.txt']
    with pytest.raises(ValueError, match='not a MiniScenes folder'):
        build_mini_scenes(tmp_path / 'mine.txt', **TINY)


def test_checking_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        check_mini_scenes(tmp_path / 'nowhere')


def test_an_empty_folder_is_filled(tmp_path):
    build_mini_scenes(tmp_path, progress=False, **TINY)
    check_mini_scenes(tmp_path, **TINY)


@pytest.mark.parametrize(
    'parameters, error, name',
    [
        (dict(train=0), ValueError, 'train'),
        (dict(val=-1), ValueError, 'val'),
        (dict(seed=-1), ValueError, 'seed'),
        (dict(seed='0'), TypeError, 'seed'),
        (dict(size=8), ValueError, 'size'),
    ],
)
def test_bad_parameters_are_refused(tmp_path, parameters, error, name):
    with pytest.raises(error, match=f'{name} must be'):
        build_mini_scenes(tmp_path / 'scenes', **{**TINY, **parameters})
    assert not os.listdir(tmp_path)


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def render_some(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render_scene(*args)

    monkeypatch.setattr(mini_scenes, 'render_scene', render_some)
    with pytest.raises(KeyboardInterrupt):
        build_mini_scenes(tmp_path / 'scenes', progress=False, **TINY)
    assert not os.listdir(tmp_path)


def test_losing_the_race_takes_the_winners_folder(tmp_path, monkeypatch):
    """Another process finishes while this one renders."""
    root = tmp_path / 'scenes'
    rename = os.rename

    def rename_late(source, target):
        monkeypatch.undo()
        build_mini_scenes(root, progress=False, **TINY)
        rename(source, target)

    monkeypatch.setattr(os, 'rename', rename_late)
    assert build_mini_scenes(root, progress=False, **TINY) == root
    check_mini_scenes(root, **TINY)
    assert os.listdir(tmp_path) == ['scenes']


def _build_at_once(root, barrier):
    barrier.wait(timeout=30)
    build_mini_scenes(root, progress=False, **TINY)


def test_processes_may_build_at_once(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier = context.Barrier(3)
    root = tmp_path / 'scenes'
    workers = [context.Process(target=_build_at_once, args=(root, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    check_mini_scenes(root, **TINY)
    assert os.listdir(tmp_path) == ['scenes']


def test_progress_is_one_line_without_a_terminal(tmp_path, capsys):
    build_mini_scenes(tmp_path / 'scenes', **TINY)
    output = capsys.readouterr()
    assert output.out == ''
    assert output.err.count('\n') == 1 and 'rendering 5 scenes of 64x64' in output.err


def test_command_line(tmp_path, capsys):
    arguments = [str(tmp_path / 'scenes'), '--size', '64', '--train', '1', '--val', '1']
    assert mini_scenes.main(arguments) == 0
    assert '1 training' in capsys.readouterr().out
    assert mini_scenes.main([*arguments, '--seed', '5']) == 2
    assert 'error: ' in capsys.readouterr().err


def test_building_needs_no_host(tmp_path):
    """Without mmseg the builder works, and the data sets say what they lack."""
    script = (
        'import sys\n'
        "sys.modules['mmseg'] = None\n"
        'import mmdyn.datasets\n'
        'from mmdyn.datasets.mini_scenes import build_mini_scenes\n'
        'build_mini_scenes(sys.argv[1], size=32, train=1, val=1)\n'
        'try:\n'
        '    from mmdyn.datasets import CamVidDataset\n'
        'except ImportError as error:\n'
        "    assert 'needs mmsegmentation' in str(error)\n"
        'else:\n'
        '    raise SystemExit(1)\n'
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, '-c', script, str(tmp_path / 'scenes')]
    subprocess.run(command, check=True, cwd=root, timeout=60)


# -- mmseg data set --------------------------------------------------------------------


@pytest.fixture
def mmseg_scope():
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def test_data_set_builds_itself_once(tmp_path):
    root = tmp_path / 'scenes'
    lazy = MiniScenesDataset(data_root=str(root), lazy_init=True, **TINY)
    assert lazy.metainfo['classes'] == CLASSES
    assert not root.exists()
    lazy.full_init()
    assert len(lazy) == 3
    assert len(MiniScenesDataset('validation', data_root=str(root), **TINY)) == 2
    with pytest.raises(ValueError, match='size is 64, wanted 32'):
        MiniScenesDataset(data_root=str(root), **{**TINY, 'size': 32})


def test_unknown_split_is_refused(tiny_root):
    with pytest.raises(ValueError, match="got 'train'"):
        MiniScenesDataset('train', data_root=str(tiny_root), **TINY)


def test_data_set_through_the_training_pipeline(tiny_root, mmseg_scope):
    from mmseg.registry import DATASETS

    import mmdyn.registry  # noqa: F401  what custom_imports does in a config

    dataset = DATASETS.build(
        dict(
            type='mmdyn.MiniScenesDataset',
            data_root=str(tiny_root),
            **TINY,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='RandomResize', scale=(64, 64), ratio_range=(0.8, 1.5), keep_ratio=True),
                dict(type='RandomCrop', crop_size=(48, 48), cat_max_ratio=0.75),
                dict(type='RandomFlip', prob=0.5),
                dict(type='PhotoMetricDistortion'),
                dict(type='PackSegInputs'),
            ],
        )
    )
    batch = pseudo_collate([dataset[index] for index in range(len(dataset))])
    assert [tuple(x.shape) for x in batch['inputs']] == [(3, 48, 48)] * 3
    for sample in batch['data_samples']:
        assert tuple(sample.gt_sem_seg.data.shape) == (1, 48, 48)
        assert sample.gt_sem_seg.data.max() < len(CLASSES)


def test_coco_file_loads_in_mmdet(tiny_root):
    datasets = pytest.importorskip('mmdet.datasets')
    dataset = datasets.CocoDataset(
        data_root=str(tiny_root),
        ann_file='instances_training.json',
        data_prefix=dict(img='images/training/'),
        metainfo=dict(classes=THING_CLASSES),
    )
    counts = [len(dataset.get_data_info(index)['instances']) for index in range(len(dataset))]
    annotations = json.loads((tiny_root / 'instances_training.json').read_text())['annotations']
    assert sum(counts) == len(annotations) > 0
