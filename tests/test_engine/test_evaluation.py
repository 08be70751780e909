import pytest
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS

from mmdyn.engine import evaluation


@METRICS.register_module()
class WritingMetric(BaseMetric):
    """Can write predictions."""

    def __init__(self, output_dir=None):
        super().__init__()


@METRICS.register_module()
class SilentMetric(BaseMetric):
    """Cannot."""


@DATASETS.register_module()
class Some:
    """A data set without class names."""


def config(scope, **changes):
    pipeline = [dict(type='Load'), dict(type='PackDetInputs')]
    dataset = dict(type='RepeatDataset', dataset=dict(type='Some', pipeline=pipeline))
    settings = dict(
        default_scope=scope,
        model=dict(type='Detector', backbone=dict(type='Net')),
        test_dataloader=dict(dataset=dataset),
        test_evaluator=dict(type='SilentMetric'),
        visualizer=dict(type='Visualizer'),
        default_hooks=dict(visualization=dict(type='VisualizationHook')),
    )
    return Config({**settings, **changes})


OWN = dict(tta_model=dict(type='Mean'), tta_pipeline=[dict(type='All')])


@pytest.mark.parametrize(
    ('scope', 'changes', 'model', 'steps'),
    [
        ('mmdet', {}, 'DetTTAModel', [['A', 'TestTimeAug'], ['B', 'TestTimeAug']]),
        ('mmseg', OWN, 'Mean', [['All'], ['All']]),
    ],
)
def test_each_of_several_data_sets_is_augmented(scope, changes, model, steps):
    leaves = [dict(type=kind, pipeline=[dict(type=kind), dict(type='Pack')]) for kind in 'AB']
    loader = dict(dataset=dict(type='ConcatDataset', datasets=leaves))
    cfg = config(scope, test_dataloader=loader, **changes)
    note = evaluation.use_tta(cfg)
    assert note is None if changes else 'no tta_model and tta_pipeline' in note
    assert cfg.model.type == model
    assert cfg.model.module == dict(type='Detector', backbone=dict(type='Net'))
    found = [[s.type for s in leaf.pipeline] for leaf in cfg.test_dataloader.dataset.datasets]
    assert found == steps


def test_masks_that_the_host_can_not_merge_are_refused():
    cfg = config('mmdet')
    cfg.model.roi_head = dict(type='StandardRoIHead', mask_head=dict(type='FCNMaskHead'))
    with pytest.raises(ValueError, match=r'model\.roi_head is StandardRoIHead'):
        evaluation.use_tta(cfg)
    cfg.model.roi_head.mask_head = None
    evaluation.use_tta(cfg)


def test_a_segmentor_without_tta_is_refused():
    with pytest.raises(ValueError, match='does not set tta_pipeline'):
        evaluation.use_tta(config('mmseg', tta_model=dict(type='Mean')))


def test_a_detector_dumps_into_a_pickle():
    cfg = config('mmdet')
    evaluation.set_out(cfg, 'found.pkl')
    assert [metric.type for metric in cfg.test_evaluator] == [
        'SilentMetric',
        'mmdet.DumpDetResults',
    ]
    cfg = config('mmdet', test_evaluator=dict(metrics=[dict(type='SilentMetric')]))
    evaluation.set_out(cfg, 'found.pkl')
    assert len(cfg.test_evaluator.metrics) == 2
    several = dict(type='MultiDatasetsEvaluator', metrics=[], dataset_prefixes=[])
    with pytest.raises(ValueError, match='takes no further metric'):
        evaluation.set_out(config('mmdet', test_evaluator=several), 'found.pkl')
    with pytest.raises(ValueError, match=r'\.pickle, got found\.json'):
        evaluation.set_out(cfg, 'found.json')


def test_a_segmentor_writes_through_its_metric():
    cfg = config('mmseg', test_evaluator=[dict(type='SilentMetric'), dict(type='WritingMetric')])
    evaluation.set_out(cfg, 'labels')
    assert cfg.test_evaluator[1].output_dir == 'labels'
    with pytest.raises(ValueError, match='SilentMetric'):
        evaluation.set_out(config('mmseg'), 'labels')


def test_more_classes_than_the_host_can_write_are_refused():
    cfg = config('mmseg', test_evaluator=dict(type='WritingMetric'))
    cfg.test_dataloader.dataset.dataset.metainfo = dict(classes=list(map(str, range(300))))
    with pytest.raises(ValueError, match='300 classes'):
        evaluation.set_out(cfg, 'labels')
    assert 'output_dir' not in cfg.test_evaluator


def test_drawings_go_where_the_host_looks():
    cfg = config('mmdet')
    evaluation.set_drawing(cfg, show=False, show_dir='drawings', wait_time=2)
    assert cfg.default_hooks.visualization.draw
    assert cfg.default_hooks.visualization.test_out_dir == 'drawings'
    cfg = config('mmseg')
    evaluation.set_drawing(cfg, show=True, show_dir='drawings', wait_time=3)
    assert cfg.visualizer.save_dir == 'drawings'
    assert cfg.default_hooks.visualization.wait_time == 3
    with pytest.raises(ValueError, match='visualization hook'):
        evaluation.set_drawing(config('mmseg', default_hooks={}), True, None, 2)
