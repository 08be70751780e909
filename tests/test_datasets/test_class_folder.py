"""Folders of classes, timm's transforms, generated pictures of things."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmdyn.datasets import ClassFolder, ImageNetDataset, PackClassInputs, TimmTransform
from mmdyn.datasets.mini_things import MiniThingsDataset, build_mini_things
from mmdyn.engine.metrics import Accuracy


@pytest.fixture
def folder(tmp_path):
    for split, count in (('train', 3), ('val', 1)):
        for name in ('zebra', 'ant'):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.new('RGB', (40, 30), (255, 128, number))
                picture.save(tmp_path / split / name / f'{number}.png')
    return tmp_path


def test_classes_are_numbered_by_folder(folder):
    data = ClassFolder(data_root=str(folder), data_prefix=dict(img_path='train'))
    assert data.metainfo['classes'] == ('ant', 'zebra') and len(data) == 6
    assert [data.get_data_info(i)['gt_label'] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert data.get_data_info(5)['img_path'].endswith('zebra/2.png')
    named = ClassFolder(
        data_root=str(folder), data_prefix=dict(img_path='val'), metainfo=dict(classes=('a', 'z'))
    )
    assert named.metainfo['classes'] == ('a', 'z')


def test_missing_pictures_and_other_classes_are_told(folder):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        ClassFolder(data_root=str(folder), data_prefix=dict(img_path='nowhere'))
    with pytest.raises(ValueError, match=r'1000 classes are named, but .* has 2'):
        ImageNetDataset(data_root=str(folder), data_prefix=dict(img_path='train'))
    (folder / 'val' / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='empty'):
        ClassFolder(data_root=str(folder), data_prefix=dict(img_path='val'))


def test_imagenets_classes_have_names():
    names = ImageNetDataset.metainfo_of()['classes']
    assert len(names) == 1000 and (names[0], names[207]) == ('tench', 'golden retriever')


def test_evaluation_resizes_and_crops_without_changing_channels():
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = 200  # blue
    image[:, :10] = 255  # cropped away
    made = TimmTransform(input_size=24, crop_pct=0.6)(dict(img=image))
    assert made['img'].shape == (24, 24, 3) and made['img'].dtype == np.uint8
    assert made['ori_shape'] == made['img_shape'] == (24, 24)
    assert (made['img'] == (200, 0, 0)).all()
    packed = PackClassInputs()(made | dict(img_path='x.png', gt_label=3))
    assert packed['inputs'].shape == (3, 24, 24) and int(packed['data_samples'].gt_label) == 3
    assert (packed['inputs'][0] == 200).all()


def test_training_augments(tmp_path):
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    augment = TimmTransform(input_size=24, is_training=True, auto_augment='rand-m9-mstd0.5-inc1')
    one, other = (augment(dict(img=image))['img'] for _ in range(2))
    assert one.shape == other.shape == (24, 24, 3) and (one != other).any()


def test_things_are_generated_once(tmp_path):
    root = tmp_path / 'things'
    data = MiniThingsDataset(data_root=str(root), split='val', size=32, train=1, val=2)
    assert data.metainfo['classes'] == ('bar', 'cross', 'disc', 'post', 'ring', 'triangle')
    assert len(data) == 12
    files = sorted(root.rglob('*.png'))
    assert len(files) == 18 and Image.open(files[0]).size == (32, 32)
    before = files[0].stat().st_mtime_ns
    build_mini_things(root, size=32, train=1, val=2)
    assert files[0].stat().st_mtime_ns == before
    again = build_mini_things(tmp_path / 'again', size=32, train=1, val=2)
    for file in files:
        assert (again / file.relative_to(root)).read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match='train'):
        build_mini_things(tmp_path / 'x', train=0)


def test_accuracy_is_that_of_the_most_probable_classes():
    metric = Accuracy(topk=(1, 2))
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1]])
    labels = torch.tensor([0, 2, 2])
    samples = [dict(pred_score=s, gt_label=t) for s, t in zip(scores, labels, strict=True)]
    metric.process(None, samples)
    found = metric.evaluate(3)
    assert found == {'accuracy/top1': 33.33, 'accuracy/top2': 66.67}
    assert all(re.fullmatch(r'accuracy/top\d', name) for name in found)
