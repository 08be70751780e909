"""MiniScenes as an mmdet data set."""

import pytest

pytest.importorskip('mmdet')

from mmdyn.datasets import MiniScenesInstanceDataset
from mmdyn.datasets.mini_scenes import THING_CLASSES


def test_builds_itself_and_reads_boxes_and_masks(tmp_path):
    parts = {
        split: MiniScenesInstanceDataset(
            split, data_root=str(tmp_path / 'scenes'), size=64, train=3, val=2
        )
        for split in ('training', 'validation')
    }
    assert {split: len(part) for split, part in parts.items()} == dict(training=3, validation=2)
    assert parts['training'].metainfo['classes'] == THING_CLASSES
    assert len(parts['training'].metainfo['palette']) == len(THING_CLASSES)
    info = parts['validation'][0]
    assert 'images/validation' in info['img_path']
    assert all(0 <= one['bbox_label'] < len(THING_CLASSES) for one in info['instances'])
    assert all(one['mask']['size'] == [64, 64] for one in info['instances'])


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        MiniScenesInstanceDataset('test', data_root=str(tmp_path / 'scenes'))
