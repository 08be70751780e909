from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

from mmdyn.engine import config as edit
from mmdyn.engine.hooks import RngStateHook


@MODELS.register_module()
class LadderBackbone(BaseModule):
    """Has keep ratios."""

    def set_keep_ratios(self, ratios):
        pass


@MODELS.register_module()
class PowerBackbone(LadderBackbone):
    """Geometric, like a ViT."""

    keep_ratio_ladder = 'geometric'


def with_backbone(kind, **changes):
    return Config(dict(model=dict(backbone=dict(type=kind, **changes))))


@pytest.mark.parametrize(
    ('kind', 'changes', 'given', 'expected'),
    [
        ('LadderBackbone', {}, dict(keep_ratio=0.6), (0.6, 0.4, 0.2)),
        ('LadderBackbone', dict(keep_ratios=(0.9, 0.8)), dict(keep_ratio=0.6), (0.6, 0.4)),
        (
            'LadderBackbone',
            dict(sparse_blocks=(1, 2, 3, 4)),
            dict(keep_ratio=0.6),
            (0.6, 0.4, 0.2, 0.1),
        ),
        ('PowerBackbone', {}, dict(keep_ratio=0.6), (0.6, 0.36, 0.216)),
        ('LadderBackbone', {}, dict(keep_ratios=[0.7, 0.5, 0.2]), (0.7, 0.5, 0.2)),
        ('LadderBackbone', dict(keep_ratios=(0.9, 0.8)), {}, (0.9, 0.8)),
    ],
)
def test_keep_ratios_are_given_or_fall_from_the_first(kind, changes, given, expected):
    cfg = with_backbone(kind, **changes)
    edit.set_keep_ratios(cfg, **given)
    assert cfg.model.backbone.keep_ratios == expected


def test_work_dir_comes_from_the_nearest_place():
    for given, own, expected in (
        ('a', 'b', 'a'),
        (None, 'b', 'b'),
        (None, None, './work_dirs/name'),
    ):
        cfg = Config(dict(work_dir=own))
        edit.set_work_dir(cfg, given, 'mmdyn::name.py')
        assert cfg.work_dir == expected


@pytest.mark.parametrize('kind', ['OptimWrapper', 'mmengine.OptimWrapper', OptimWrapper])
def test_amp_replaces_the_plain_wrapper_only(kind):
    cfg = Config(dict(optim_wrapper=dict(type=kind, optimizer=dict(type='SGD'))))
    assert edit.enable_amp(cfg) is None
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert 'already' in edit.enable_amp(cfg)
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ValueError, match='ApexOptimWrapper'):
        edit.enable_amp(cfg)


def test_rng_state_hook_is_added_once():
    there = (RngStateHook(), *(dict(type=kind) for kind in (RngStateHook, 'RngStateHook')))
    for hooks in (None, [], *([hook] for hook in there)):
        cfg = Config(dict(custom_hooks=hooks))
        edit.add_rng_state_hook(cfg)
        edit.add_rng_state_hook(cfg)
        assert len(cfg.custom_hooks) == 1


def test_resuming_finds_the_latest_even_after_a_move(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth', resume=True))
    assert 'from scratch' in edit.set_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (False, 'weights.pth')
    torch.save({}, tmp_path / 'iter_2.pth')
    (tmp_path / 'last_checkpoint').write_text('./work_dirs/old/iter_2.pth')
    edit.set_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'iter_2.pth'))
    edit.set_resume(cfg, 'other.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'other.pth')
    by_itself = Config(dict(work_dir=str(tmp_path), resume=True))
    edit.set_resume(by_itself, None)
    assert by_itself.load_from == str(tmp_path / 'iter_2.pth')


def test_a_good_config_takes_the_options(tmp_path):
    path = tmp_path / 'good.py'
    path.write_text('a = dict(b=[dict(x=1), 2])')
    cfg = edit.load_config(str(path), {'a.b.0.x': 7, 'c': 3})
    assert (cfg.a.b, cfg.c) == ([dict(x=7), 2], 3)
    assert Path(cfg.filename) == path
    with pytest.raises(ValueError, match=r'--cfg-options do not fit config .*good\.py'):
        edit.load_config(str(path), {'a.b.7': 1})


def test_the_dense_teacher_and_the_checkpoint_to_resume_are_not_confused():
    cfg = Config(dict(model=dict(teacher='self'), load_from='dense.pth'))
    assert 'dense.pth' in edit.set_teacher(cfg)
    cfg = Config(dict(model=dict(teacher='self'), load_from='iter_4.pth', resume=True))
    with pytest.raises(ValueError, match=r'iter_4\.pth is the checkpoint to resume'):
        edit.set_teacher(cfg)
    assert 'iter_4.pth' in edit.set_teacher(cfg, resume='iter_8.pth')


def with_data(*roots):
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
    cfg = with_data('data/coco/', 'data/coco')
    edit.set_data_root(cfg, '/disk/coco')
    assert cfg.train_dataloader.dataset.dataset.data_root == '/disk/coco'
    assert [leaf.data_root for leaf in cfg.val_dataloader.dataset.datasets] == ['/disk/coco'] * 2
    files = [one.ann_file for one in cfg.val_evaluator]
    assert files == ['/disk/coco/annotations/val.json', 'elsewhere/val.json', '/abs/val.json']
    assert cfg.val_evaluator[2].seg_prefix == '/disk/coco/p'


def test_metrics_in_an_evaluators_dict_move_too():
    cfg = with_data('data/coco', 'data/coco')
    cfg.val_evaluator = dict(metrics=cfg.val_evaluator)
    edit.set_data_root(cfg, '/disk/coco')
    assert cfg.val_evaluator.metrics[0].ann_file == '/disk/coco/annotations/val.json'


@pytest.mark.parametrize('roots', [('data/a', 'data/b'), ('',)], ids=['several', 'none'])
def test_a_config_with_no_one_folder_is_refused(roots):
    with pytest.raises(ValueError, match=r'--data-root /disk.*train_dataloader\.dataset'):
        edit.set_data_root(with_data(*roots), '/disk')
