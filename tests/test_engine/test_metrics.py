import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator

from mmdyn.engine.boundary import BoundaryFScore, border, boundary_f_score
from mmdyn.engine.metrics import KeptFraction, add_kept_fraction
from mmdyn.registry import METRICS

KEPT = dict(type='mmdyn.KeptFraction')
MANY = dict(type='MultiDatasetsEvaluator', metrics=[dict(type='A')], dataset_prefixes=['a'])


@pytest.mark.parametrize(
    ('samples', 'expected'),
    [
        ([dict(kept_fractions=[0.7, 0.4]), dict(kept_fractions=[0.5, 0.2])], [0.6, 0.3]),
        ([dict(kept_fractions=[0.7, 0.4], kept_tiles=0.25)], [0.7, 0.4, 0.25]),
        ([dict(kept_tiles=0.25), dict(kept_tiles=0.5)], [0.375]),
        ([dict()], []),
    ],
)
def test_kept_fractions_are_averaged(samples, expected):
    metric = KeptFraction()
    metric.process({}, samples)
    found = metric.compute_metrics(metric.results)
    assert list(found.values()) == pytest.approx(expected)
    assert ('tile_ratio' in found) is any('kept_tiles' in sample for sample in samples)


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
        (MANY, MANY),  # not added if each metric has a data set
    ],
)
def test_kept_fraction_stands_beside_the_others_in_every_form(given, expected):
    cfg = Config(dict(model=dict(type='mmdyn.Model'), val_evaluator=given))
    add_kept_fraction(cfg, 'val_evaluator')
    assert cfg.val_evaluator == expected


def halves(at, size=20):
    labels = np.zeros((size, size), dtype=np.int64)
    labels[:, at:] = 1
    return labels


def test_the_same_borders_score_1_and_those_within_the_tolerance_too():
    assert boundary_f_score(halves(10), halves(10), 0) == 1
    assert boundary_f_score(halves(12), halves(10), 2) == 1
    assert boundary_f_score(halves(13), halves(10), 2) == 0
    assert boundary_f_score(halves(11), halves(10), 0) == 0
    assert boundary_f_score(np.zeros((4, 4)), np.zeros((4, 4))) is None  # no border at all


def test_the_tolerance_is_a_distance_in_every_direction():
    rng = np.random.default_rng(0)
    pred, truth = (rng.integers(0, 3, (20, 20)) for _ in range(2))
    assert boundary_f_score(pred, truth, 2) == boundary_f_score(pred.T, truth.T, 2)
    dot, beside = (np.zeros((20, 20), dtype=np.int64) for _ in range(2))
    dot[10, 10] = beside[12, 11] = 1  # the pixel of class 1 is its own border, 2.24 away
    of_1 = [boundary_f_score(dot, beside, tolerance) for tolerance in (2, 3)]
    assert of_1[0] < of_1[1] == 1


def test_precision_and_recall():
    truth, pred = halves(10), halves(10)
    pred[10:] = 0  # half of the border is missed; beneath it another, of which nothing is true
    edge = border(pred, np.ones_like(pred, dtype=bool))
    scores = []
    for label, column in ((0, 9), (1, 10)):
        found = edge & (pred == label)
        right = (found & (np.arange(20) == column)).sum() / found.sum()
        scores.append(2 * right * 0.5 / (right + 0.5))
    assert boundary_f_score(pred, truth, 0) == pytest.approx(np.mean(scores))
    pred = halves(10)
    pred[0, 0] = 7  # a class that is not in the image scores 0
    assert boundary_f_score(pred, truth, 0) < 2 / 3 + 1e-6


def test_what_is_ignored_is_no_border():
    truth = halves(10)
    truth[:, 8:12] = 255
    assert boundary_f_score(halves(10), truth, 1) is None
    truth[:5] = halves(10)[:5]
    assert boundary_f_score(halves(10), truth, 1) == 1


def test_the_boundary_metric_averages_over_images():
    metric = METRICS.build(dict(type='mmdyn.BoundaryFScore', tolerance=1))
    samples = [
        dict(
            pred_sem_seg=dict(data=torch.as_tensor(halves(at)[None])),
            gt_sem_seg=dict(data=torch.as_tensor(halves(10)[None])),
        )
        for at in (10, 15)
    ]
    metric.process({}, samples)
    assert metric.evaluate(2) == {'mBF': 50.0}


def test_bad_input_of_the_boundary_metric():
    with pytest.raises(ValueError, match='got -1'):
        BoundaryFScore(tolerance=-1)
    with pytest.raises(ValueError, match=r'\(4, 4\) and truth \(4, 5\)'):
        boundary_f_score(np.zeros((4, 4)), np.zeros((4, 5)))
