import pytest
from mmengine.config import Config
from mmengine.evaluator import Evaluator

from mmdyn.engine.metrics import KeptFraction, add_kept_fraction


@pytest.mark.parametrize(
    ('samples', 'expected'),
    [
        ([dict(kept_fractions=[0.7, 0.4]), dict(kept_fractions=[0.5, 0.2])], [0.6, 0.3]),
        ([dict(kept_fractions=[0.7, 0.4], kept_tiles=0.25)], [0.7, 0.4, 0.25]),
        ([dict(kept_tiles=0.25), dict(kept_tiles=0.5)], [0.375]),
        ([dict()], []),
    ],
)
def test_means_of_what_the_samples_tell(samples, expected):
    metric = KeptFraction()
    metric.process({}, samples)
    found = metric.compute_metrics(metric.results)
    assert list(found.values()) == pytest.approx(expected)
    assert ('tile_ratio' in found) is any('kept_tiles' in sample for sample in samples)


KEPT = dict(type='mmdyn.KeptFraction')


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (dict(type='A'), [dict(type='A'), KEPT]),
        ([dict(type='A')], [dict(type='A'), KEPT]),
        (dict(metrics=[dict(type='A')]), dict(metrics=[dict(type='A'), KEPT])),
        (dict(metrics=dict(type='A')), dict(metrics=[dict(type='A'), KEPT])),
        ([KEPT], [KEPT]),
        (dict(type=Evaluator, metrics=[]), dict(type=Evaluator, metrics=[])),
        (
            dict(type=Evaluator, metrics=[dict(type='A')]),
            dict(type=Evaluator, metrics=[dict(type='A'), KEPT]),
        ),
    ],
)
def test_it_stands_beside_the_others_in_every_form(given, expected):
    cfg = Config(dict(model=dict(type='mmdyn.Model'), val_evaluator=given))
    add_kept_fraction(cfg, 'val_evaluator')
    assert cfg.val_evaluator == expected


def test_where_each_metric_has_a_data_set_it_is_left_out():
    given = dict(type='MultiDatasetsEvaluator', metrics=[dict(type='A')], dataset_prefixes=['a'])
    cfg = Config(dict(model=dict(type='mmdyn.Model'), val_evaluator=given))
    add_kept_fraction(cfg, 'val_evaluator')
    assert cfg.val_evaluator == given
