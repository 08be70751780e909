"""MiniScenes: renderer, folder, and the hosts' data sets."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmdyn.datasets import MiniScenesDataset, mini_scenes
from mmdyn.datasets.mini_scenes import build_mini_scenes
from mmdyn.datasets.scene_renderer import (
    CLASSES,
    PALETTE,
    STUFF_CLASSES,
    THING_CLASSES,
    render_scene,
)

TINY = dict(size=64, train=3, val=2, seed=0)
# Hashes of twenty label maps, by size: figures measured on MiniScenes stay comparable.
DIGESTS = {64: '531a5a7bbaff8c2f', 128: 'c0bb8b7381eb515e'}


@pytest.fixture(scope='module')
def tiny_root(tmp_path_factory):
    return build_mini_scenes(tmp_path_factory.mktemp('data') / 'scenes', progress=False, **TINY)


@pytest.fixture(scope='module')
def default_scenes():
    """Sixteen of the validation scenes of the default data set."""
    return [render_scene((0, 1, index)) for index in range(16)]


def read_tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def read_times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob('*')}


# -- renderer --------------------------------------------------------------------------


@pytest.mark.parametrize('size', DIGESTS)
def test_scenes_are_what_they_were(size):
    scenes = [render_scene((0, 1, index), size) for index in range(20)]
    labels = hashlib.sha256(b''.join(scene.labels.tobytes() for scene in scenes)).hexdigest()
    assert labels[:16] == DIGESTS[size]
    for scene in scenes:
        assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
        assert scene.labels.shape == (size, size) and scene.labels.dtype == np.uint8


@pytest.mark.parametrize('seed', range(4))
def test_a_seed_is_one_scene_at_every_size(seed):
    small, large = render_scene(seed, 64), render_scene(seed, 192)
    # Centres of every third pixel of the large one coincide with those of the small one.
    agreement = (small.labels == large.labels[1::3, 1::3]).mean()
    assert agreement > 0.97


def test_instances_partition_the_thing_pixels(default_scenes):
    for scene in default_scenes:
        owners = np.sum([mask for _, mask in scene.instances], axis=0)
        assert np.array_equal(owners, scene.labels >= len(STUFF_CLASSES))
        for class_id, mask in scene.instances:
            assert (scene.labels[mask] == class_id).all() and mask.any()


def test_colour_does_not_give_the_class_away(default_scenes):
    """The nearest mean colour of the six shapes predicts a shape hardly better than chance."""
    samples = [
        (class_id, scene.image[mask].mean(0))
        for scene in default_scenes
        for class_id, mask in scene.instances
    ]
    classes = np.array([class_id for class_id, _ in samples])
    colours = np.array([colour for _, colour in samples])
    # One half of the things gives the mean colours, which classify the others.
    learn = np.arange(len(classes)) % 2 == 0
    names = np.unique(classes)
    means = np.stack([colours[learn & (classes == c)].mean(0) for c in names])
    distance = np.linalg.norm(colours[~learn][:, None] - means, axis=-1)
    assert (names[distance.argmin(1)] == classes[~learn]).mean() < 0.4


# -- folder ----------------------------------------------------------------------------


def test_the_folder_holds_what_was_rendered(tiny_root, tmp_path):
    for number, (split, count) in enumerate((('training', 3), ('validation', 2))):
        assert len(list((tiny_root / 'images' / split).iterdir())) == count
        for index in range(count):
            scene = render_scene((0, number, index), 64)
            for kind, pixels in (('images', scene.image), ('annotations', scene.labels)):
                written = Image.open(tiny_root / kind / split / f'{index:06d}.png')
                assert np.array_equal(written, pixels)
    build_mini_scenes(tmp_path, progress=False, **TINY)  # an empty folder is filled
    assert read_tree(tmp_path) == read_tree(tiny_root)


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
                assert mask.sum() == annotation['area'] >= 2
                x, y, w, h = annotation['bbox']
                assert mask[y : y + h, x : x + w].sum() == mask.sum()
                assert mask[y].any() and mask[:, x].any()
                assert mask[y + h - 1].any() and mask[:, x + w - 1].any()
                covered |= mask
            # Only instances below two pixels (eight at a side of 128) may be missing.
            assert ((labels >= len(STUFF_CLASSES)) & ~covered).sum() < 10


@pytest.mark.parametrize(
    'manifest, message',
    [
        (None, 'not a MiniScenes folder'),
        ('{}', 'damaged manifest'),
        ('[1]', 'damaged manifest'),
        ('{"format": 9}', 'has format 9'),
        (
            '{"format": 2, "parameters": {"size": 32, "train": 3, "val": 2, "seed": 0}}',
            'size is 32, wanted 64',
        ),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, manifest, message):
    (tmp_path / 'mine.txt').write_text('precious')
    if manifest is not None:
        (tmp_path / 'manifest.json').write_text(manifest)
    before = read_tree(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        build_mini_scenes(tmp_path, **TINY)
    assert str(tmp_path) in str(caught.value)
    assert read_tree(tmp_path) == before
    with pytest.raises(ValueError, match='not a MiniScenes folder'):
        build_mini_scenes(tmp_path / 'mine.txt', **TINY)


def test_a_folder_that_lost_a_picture_is_refused(tmp_path):
    build_mini_scenes(tmp_path, progress=False, **TINY)
    (tmp_path / 'annotations/validation/000001.png').unlink()
    with pytest.raises(ValueError, match='has 1 pictures in annotations/validation, not 2'):
        build_mini_scenes(tmp_path, progress=False, **TINY)


@pytest.mark.parametrize(
    'name, value, error',
    [
        ('train', 0, ValueError),
        ('val', -1, ValueError),
        ('seed', -1, ValueError),
        ('seed', '0', TypeError),
        ('size', 8, ValueError),
        ('size', 64.0, TypeError),
        ('size', True, TypeError),
    ],
)
def test_bad_parameters_are_refused(tmp_path, name, value, error):
    with pytest.raises(error, match=f'{name} must .*{value}'):
        build_mini_scenes(tmp_path / 'scenes', **{**TINY, name: value})
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
    assert os.listdir(tmp_path) == ['scenes']


def test_building_needs_no_host(tmp_path):
    """Without mmseg the builder works, and the data sets name what is missing."""
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


# -- data sets of the hosts ------------------------------------------------------------


def test_data_set_builds_itself_once(tmp_path):
    root = tmp_path / 'scenes'
    lazy = MiniScenesDataset(data_root=str(root), lazy_init=True, **TINY)
    assert lazy.metainfo['classes'] == CLASSES
    assert len(PALETTE) == len(CLASSES)
    assert not root.exists()
    lazy.full_init()
    assert len(lazy) == 3
    built = read_times(root)
    assert len(MiniScenesDataset('validation', data_root=str(root), **TINY)) == 2
    assert read_times(root) == built
    with pytest.raises(ValueError, match='size is 64, wanted 32'):
        MiniScenesDataset(data_root=str(root), **{**TINY, 'size': 32})
    with pytest.raises(ValueError, match="'train'"):
        MiniScenesDataset('train', data_root=str(root), **TINY)


def test_mmdets_data_set_reads_boxes_and_masks(tiny_root):
    pytest.importorskip('mmdet')
    from mmdyn.datasets import MiniScenesInstanceDataset

    parts = [
        MiniScenesInstanceDataset(split, data_root=str(tiny_root), **TINY)
        for split in ('training', 'validation')
    ]
    assert [len(part) for part in parts] == [3, 2]
    assert parts[0].metainfo['classes'] == THING_CLASSES
    assert len(parts[0].metainfo['palette']) == len(THING_CLASSES)
    coco = COCO(str(tiny_root / 'instances_training.json'))
    counts = [len(parts[0].get_data_info(index)['instances']) for index in range(3)]
    assert sum(counts) == len(coco.getAnnIds()) > 0
    info = parts[1][0]
    assert 'images/validation' in info['img_path']
    assert all(0 <= one['bbox_label'] < len(THING_CLASSES) for one in info['instances'])
    assert all(one['mask']['size'] == [64, 64] for one in info['instances'])
