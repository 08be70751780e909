"""Subsets of test sets of both hosts."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmdyn.analysis.evaluating import (
    Evaluation,
    ModelTester,
    check_metric,
    evenly,
    metric_name,
    take_part,
)
from mmdyn.analysis.lines import lines_of
from mmdyn.analysis.measuring import Latency, Measurement
from mmdyn.analysis.rows import rows_of


def write_coco(root, count):
    """Pictures of 64x64, one box of 20x20 in each, ids from 10."""
    (root / 'images').mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        noise = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / 'images' / f'{i}.png')
        images.append(dict(id=10 + i, file_name=f'{i}.png', height=64, width=64))
        box = dict(bbox=[4 + i, 4, 20, 20], area=400, iscrowd=0)
        annotations.append(dict(box, id=1 + i, image_id=10 + i, category_id=1 + i % 3))
    categories = [dict(id=1 + k, name=name) for k, name in enumerate('abc')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'all.json').write_text(json.dumps(content))


@pytest.fixture
def detector(tmp_path):
    from tests.test_reliability.tiny import make_detector

    tiny = make_detector(tmp_path)
    return str(tiny.config), str(tiny.checkpoint)


def perfect(tester):
    """Perfect detections in the selected images."""
    for i in range(len(tester.dataset)):
        info = tester.dataset.get_data_info(i)
        (instance,) = info['instances']
        found = dict(
            bboxes=torch.tensor([instance['bbox']], dtype=torch.float32),
            scores=torch.ones(1),
            labels=torch.tensor([instance['bbox_label']]),
        )
        yield dict(img_id=info['img_id'], ori_shape=(64, 64), pred_instances=found)


def test_images_that_are_left_out_are_no_misses(detector, tmp_path, capsys):
    tester = ModelTester(*detector, tmp_path / 'logs', images=3)
    evaluator = tester.runner.test_loop.evaluator
    assert [tester.dataset.get_data_info(i)['img_id'] for i in range(3)] == [10, 11, 12]
    for sample in perfect(tester):
        evaluator.metrics[0].process({}, [sample])
    assert evaluator.evaluate(3)['coco/bbox_mAP'] == 1.0
    batches = tester.batches(2)
    assert [batch.metainfos[0]['img_id'] for batch in batches] == [10, 11]


def test_evenly():
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 8) == [0, 1, 2]


def test_a_part_of_a_part(detector):
    cfg = Config.fromfile(detector[0])
    for given, expected in ((2, [0, 1]), ([3, 1, 2, 0], [3, 2]), (None, [0, 2])):
        cfg.test_dataloader.dataset.indices = given
        take_part(cfg, 2)
        assert cfg.test_dataloader.dataset.indices == expected


def test_what_can_not_be_divided(detector):
    cfg = Config.fromfile(detector[0])
    with pytest.raises(ValueError, match='at least 1'):
        take_part(cfg, 0)
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[cfg.test_dataloader.dataset])
    with pytest.raises(ValueError, match='ConcatDataset'):
        take_part(cfg, 2)


def test_a_first_image_without_a_find_refuses_no_metric(detector, tmp_path, monkeypatch):
    tester = ModelTester(*detector, tmp_path / 'logs', images=1)
    evaluator = tester.runner.test_loop.evaluator
    monkeypatch.setattr(evaluator, 'evaluate', lambda size: {'keep_ratio_0': 0.7})
    check_metric(tester, None)
    check_metric(tester, 'coco/bbox_mAP')


def test_a_line_that_finds_nothing_scores_nothing(detector, tmp_path):
    tester = ModelTester(*detector, tmp_path / 'logs', images=1)
    one, other = lines_of(tester.loaded, [(0.7, 0.5, 0.3)], random=False)
    cost = Measurement(Latency(1.0, 1.0, 1.0, (1.0,), 1.0), 1)
    metrics = {one.name: {'coco/bbox_mAP': 0.5}, other.name: {'keep_ratio_0': 0.7}}
    found = rows_of(
        [one, other],
        dict.fromkeys(metrics, cost),
        {name: Evaluation(values) for name, values in metrics.items()},
    )
    assert [(row.value, row.difference, row.note) for row in found] == [
        (0.5, None, ''),
        (0.0, -0.5, 'found nothing'),
    ]


def test_the_metric_that_counts():
    metrics = {'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.2, 'aAcc': 90.0}
    assert metric_name(metrics) == 'coco/segm_mAP'
    assert metric_name(metrics, 'aAcc') == 'aAcc'
    with pytest.raises(ValueError, match=r"not measure 'mIoU' or .*; it measures x"):
        metric_name({'x': 1.0})
