"""A picture through two models."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmdyn.analysis.counting import count_executed
from mmdyn.apis import DynamicInferencer
from mmdyn.app import comparing
from mmdyn.app.comparing import Comparer


def kept(side):
    return [choice.fraction for choice in side.inference.choices]


def test_less_is_kept_and_executed(comparer, picture):
    assert comparer.ratios == {'keep_ratio': 0.7} and comparer.dense is comparer.sparse
    some, few = (comparer(picture, keep_ratio=ratio) for ratio in (0.7, 0.5))
    assert kept(some.dense) == kept(few.dense) == [1, 1, 1]
    assert kept(some.sparse) == pytest.approx([0.7, 0.5, 0.3], abs=0.05)
    assert kept(few.sparse) == pytest.approx([0.5, 0.3, 0.1], abs=0.05)
    assert few.sparse.macs.total < some.sparse.macs.total < some.dense.macs.total
    assert few.dense.macs.total == some.dense.macs.total
    assert some.dense.inference.labels.shape == (128, 160)


def test_the_configs_own_ratios_count_until_the_slider_moves_and_no_policy(tiny, picture):
    options = {
        'model.backbone.keep_ratios': (0.6, 0.6, 0.5),
        'model.backbone.policy': dict(type='mmdyn.ThresholdPolicy', threshold=0.0),
    }
    comparer = Comparer(DynamicInferencer(tiny, device='cpu', cfg_options=options), seconds=0)
    own, moved = comparer(picture), comparer(picture, keep_ratio=0.5)
    assert kept(own.sparse) == pytest.approx([0.6, 0.6, 0.5], abs=0.05)
    assert kept(moved.sparse) == pytest.approx([0.5, 0.3, 0.1], abs=0.05)


def test_figures_are_those_of_the_prediction(comparer, picture):
    found = comparer(picture, keep_ratio=0.5)
    results = comparer.sparse(picture.image, keep_ratio=0.5)
    count, inference = count_executed(lambda: next(results), comparer.sparse.model)
    assert found.sparse.macs.macs == count.macs
    assert np.array_equal(found.sparse.inference.labels, inference.labels)
    times = found.dense.latency, found.sparse.latency
    assert [len(time.samples) for time in times] == [comparing.ROUNDS] * 2
    ratios = [a / b for a, b in zip(times[0].samples, times[1].samples, strict=True)]
    assert found.speedup.median == pytest.approx(np.median(ratios))


def test_at_the_highest_ratio_the_two_are_one(comparer, picture):
    found = comparer(picture, keep_ratio=1.0)
    assert np.array_equal(found.dense.inference.labels, found.sparse.inference.labels)
    assert found.dense.macs.total == found.sparse.macs.total


def test_another_dense_model(picture):
    sparse, dense = (
        DynamicInferencer(f'mmdyn::upernet_{name}_mini.py', device='cpu')
        for name in ('dynswin', 'swin')
    )
    comparer = Comparer(sparse, dense, cpu_threads=1, seconds=0)
    found = comparer(picture)
    assert found.threads == 1
    assert found.dense.inference.choices == () and len(found.sparse.inference.choices) == 3
    assert found.dense.model.name == 'upernet_swin_mini'
    assert 'predictors' not in found.dense.macs.by_group()


def test_a_detector_that_goes_by_tiles(picture):
    pytest.importorskip('mmdet')
    infer = DynamicInferencer(
        'mmdyn::mask_rcnn_dynfpn_dynswin_mini.py',
        device='cpu',
        cfg_options={'model.test_cfg.rpn.max_per_img': 4},
    )
    comparer = Comparer(infer, seconds=0)
    assert comparer.ratios == {'keep_ratio': 0.7, 'tile_ratio': 0.5}
    found = comparer(picture, keep_ratio=0.5, tile_ratio=0.25)
    assert found.sparse.inference.tiles.fraction == pytest.approx(0.25, abs=0.02)
    assert kept(found.sparse)[0] == pytest.approx(0.5, abs=0.02)
    assert found.dense.inference.labels is None
    dense, sparse = (side.macs.by_group() for side in (found.dense, found.sparse))
    assert sparse['neck'] < dense['neck'] and sparse['backbone'] < dense['backbone']


def test_a_head_that_goes_by_tiles_on_a_dense_backbone(picture):
    comparer = Comparer(
        DynamicInferencer('mmdyn::upernet_dynhead_mini.py', device='cpu'), seconds=0
    )
    assert comparer.ratios == {'tile_ratio': 0.25}
    found = comparer(picture, tile_ratio=0.5)
    assert found.sparse.inference.tiles.fraction == pytest.approx(0.5, abs=0.05)
    assert found.sparse.inference.choices == ()


def test_one_at_a_time(comparer, picture, monkeypatch):
    active, most = 0, 0
    measure = comparing.measure_latency

    def slow(*args, **kwargs):
        nonlocal active, most
        active += 1
        most = max(most, active)
        time.sleep(0.1)
        active -= 1
        return measure(*args, **kwargs)

    monkeypatch.setattr(comparing, 'measure_latency', slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda r: comparer(picture, keep_ratio=r), (0.7, 0.5))
    assert most == 1
    assert kept(first.sparse)[0] == pytest.approx(0.7, abs=0.05)
    assert kept(second.sparse)[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(('ratio', 'error'), [(0, ValueError), (1.5, ValueError), ('x', TypeError)])
def test_after_a_wrong_ratio_the_next_one_works(comparer, picture, ratio, error):
    with pytest.raises(error):
        comparer(picture, keep_ratio=ratio)
    assert comparer(picture).sparse.macs.total


def test_models_that_make_no_comparison(comparer):
    dense = DynamicInferencer('mmdyn::upernet_swin_mini.py', device='cpu')
    with pytest.raises(ValueError, match='upernet_swin_mini has nothing to choose'):
        Comparer(dense)
    with pytest.raises(ValueError, match=r'\(10 and 3\)'):
        Comparer(comparer.sparse, dense)
