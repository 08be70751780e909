"""CamVidDataset on a tiny tree: void is ignored."""

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from mmseg.utils import register_all_modules
from PIL import Image

from mmdyn.datasets import CamVidDataset

PREFIX = dict(img_path='images/train', seg_map_path='annotations/train')
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


@pytest.fixture
def mmseg_scope():
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture
def root(tmp_path):
    """Two pictures of 60x40; each column of an annotation is a class, the 12th is void."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12, dtype=np.uint8), 5)[None].repeat(40, 0)
    for folder in PREFIX.values():
        (tmp_path / folder).mkdir(parents=True)
    for name in ('a', 'b'):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / PREFIX['img_path'] / f'{name}.jpg')
        Image.fromarray(labels).save(tmp_path / PREFIX['seg_map_path'] / f'{name}.png')
    return tmp_path


def make(root, pipeline, **kwargs):
    return CamVidDataset(data_root=str(root), data_prefix=PREFIX, pipeline=pipeline, **kwargs)


def test_void_is_ignored_and_classes_stay(root, mmseg_scope):
    dataset = make(root, LOAD)
    assert len(dataset) == 2
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 11
    loaded = dataset[0]['gt_seg_map']
    assert loaded.dtype == np.uint8
    assert np.unique(loaded).tolist() == [*range(11), 255]
    assert (loaded[:, :5] == 0).all() and (loaded[:, 50:55] == 10).all()
    assert (loaded[:, 55:] == 255).all()


def test_void_is_ignored_with_a_subset_of_classes(root, mmseg_scope):
    dataset = make(root, LOAD, metainfo=dict(classes=('car', 'road')))
    loaded = dataset[0]['gt_seg_map']
    assert (loaded[:, 40:45] == 0).all() and (loaded[:, 15:20] == 1).all()
    assert (loaded == 255).mean() == pytest.approx(10 / 12)
    assert dataset.metainfo['palette'] == [[64, 0, 128], [128, 64, 128]]
