import numpy as np
import pytest
import torch

from mmdyn.engine.boundary import BoundaryFScore, border, boundary_f_score
from mmdyn.registry import METRICS


def halves(at, size=20):
    labels = np.zeros((size, size), dtype=np.int64)
    labels[:, at:] = 1
    return labels


def test_the_same_borders_score_1_and_those_within_the_tolerance_too():
    assert boundary_f_score(halves(10), halves(10), 0) == 1
    assert boundary_f_score(halves(12), halves(10), 2) == 1
    assert boundary_f_score(halves(13), halves(10), 2) == 0
    assert boundary_f_score(halves(11), halves(10), 0) == 0


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
    found = edge & (pred == 1)
    right = (found & (np.arange(20) == 10)).sum() / found.sum()
    f_of_1 = 2 * right * 0.5 / (right + 0.5)
    found = edge & (pred == 0)
    right = (found & (np.arange(20) == 9)).sum() / found.sum()
    f_of_0 = 2 * right * 0.5 / (right + 0.5)
    assert boundary_f_score(pred, truth, 0) == pytest.approx((f_of_0 + f_of_1) / 2)


def test_what_is_ignored_is_no_border():
    truth = halves(10)
    truth[:, 8:12] = 255
    assert boundary_f_score(halves(10), truth, 1) is None
    truth[:5] = halves(10)[:5]
    assert boundary_f_score(halves(10), truth, 1) == 1


def test_a_class_that_is_not_there_scores_0():
    truth, pred = halves(10), halves(10)
    pred[0, 0] = 7
    score = boundary_f_score(pred, truth, 0)
    assert score < 2 / 3 + 1e-6


def test_without_borders_there_is_no_score():
    assert boundary_f_score(np.zeros((4, 4)), np.zeros((4, 4))) is None


def test_the_metric_averages_over_images():
    metric = METRICS.build(dict(type='mmdyn.BoundaryFScore', tolerance=1))
    assert isinstance(metric, BoundaryFScore)
    samples = [
        dict(
            pred_sem_seg=dict(data=torch.as_tensor(halves(at)[None])),
            gt_sem_seg=dict(data=torch.as_tensor(halves(10)[None])),
        )
        for at in (10, 15)
    ]
    metric.process({}, samples)
    assert metric.evaluate(2) == {'mBF': 50.0}


def test_bad_input():
    with pytest.raises(ValueError, match='got -1'):
        BoundaryFScore(tolerance=-1)
    with pytest.raises(ValueError, match='differ in shape'):
        boundary_f_score(np.zeros((4, 4)), np.zeros((4, 5)))
