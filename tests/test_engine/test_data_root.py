"""Another folder for a config's data."""

import pytest
from mmengine.config import Config

from mmdyn.engine.data_root import set_data_root


def config(*roots):
    leaves = [dict(type='CocoDataset', data_root=root, ann_file='a.json') for root in roots]
    return Config(
        dict(
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=leaves[0])),
            val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=leaves)),
            test_dataloader=None,
            val_evaluator=[
                dict(type='CocoMetric', ann_file='data/coco/annotations/val.json'),
                dict(type='CocoMetric', ann_file='elsewhere/val.json'),
                dict(type='Panoptic', ann_file='/abs/val.json', seg_prefix='data/coco/p/'),
            ],
        )
    )


def test_every_data_set_and_metric_moves():
    cfg = config('data/coco/', 'data/coco')
    set_data_root(cfg, '/disk/coco')
    assert cfg.train_dataloader.dataset.dataset.data_root == '/disk/coco'
    assert [leaf.data_root for leaf in cfg.val_dataloader.dataset.datasets] == ['/disk/coco'] * 2
    files = [one.ann_file for one in cfg.val_evaluator]
    assert files == ['/disk/coco/annotations/val.json', 'elsewhere/val.json', '/abs/val.json']
    assert cfg.val_evaluator[2].seg_prefix == '/disk/coco/p'


def test_metrics_in_an_evaluators_dict_move_too():
    cfg = config('data/coco', 'data/coco')
    cfg.val_evaluator = dict(metrics=cfg.val_evaluator)
    set_data_root(cfg, '/disk/coco')
    assert cfg.val_evaluator.metrics[0].ann_file == '/disk/coco/annotations/val.json'


@pytest.mark.parametrize('roots', [('data/a', 'data/b'), ('',)], ids=['several', 'none'])
def test_a_config_with_no_one_folder_is_refused(roots):
    with pytest.raises(ValueError, match=r'--data-root /disk.*train_dataloader\.dataset'):
        set_data_root(config(*roots), '/disk')
