"""A picture through two models."""

import numpy as np
import pytest

from mmdyn.analysis.counting import count_macs
from mmdyn.apis import DynamicInferencer
from mmdyn.app.comparing import Comparer


def kept(inference):
    return [choice.fraction for choice in inference.choices]


def test_less_is_kept_and_executed(comparer, picture):
    assert comparer.ratios == {'keep_ratio': 0.7} and comparer.dense is comparer.sparse
    (dense, some), rows, _ = comparer(picture, keep_ratio=0.7)
    (also_dense, few), less, _ = comparer(picture, keep_ratio=0.5)
    assert kept(dense) == kept(also_dense) == [1, 1, 1]
    assert kept(some) == pytest.approx([0.7, 0.5, 0.3], abs=0.05)
    assert kept(few) == pytest.approx([0.5, 0.3, 0.1], abs=0.05)
    assert less[1].gmacs < rows[1].gmacs < rows[0].gmacs == less[0].gmacs
    assert dense.labels.shape == (128, 160)


def test_the_configs_own_ratios_count_until_the_slider_moves_and_no_policy(tiny, picture):
    options = {
        'model.backbone.keep_ratios': (0.6, 0.6, 0.5),
        'model.backbone.policy': dict(type='mmdyn.ThresholdPolicy', threshold=0.0),
    }
    comparer = Comparer(DynamicInferencer(tiny, device='cpu', cfg_options=options), seconds=0)
    for ratios, expected in (({}, [0.6, 0.6, 0.5]), ({'keep_ratio': 0.5}, [0.5, 0.3, 0.1])):
        assert kept(comparer(picture, **ratios)[0][1]) == pytest.approx(expected, abs=0.05)


def test_figures_are_those_of_the_prediction(comparer, picture):
    (_, found), (dense, sparse), macs = comparer(picture, keep_ratio=0.5)
    (inference,) = comparer.sparse(picture.image, keep_ratio=0.5)
    assert np.array_equal(found.labels, inference.labels)
    alone = count_macs(lambda: list(comparer.sparse(picture.image, keep_ratio=0.5)))
    assert sparse.gmacs == pytest.approx(alone / 1e9) and macs[1] < alone
    times = zip(dense.latency.samples, sparse.latency.samples, strict=True)
    assert sparse.speedup.median == pytest.approx(np.median([a / b for a, b in times]))


def test_at_the_highest_ratio_the_two_are_one(comparer, picture):
    (dense, sparse), rows, macs = comparer(picture, keep_ratio=1.0)
    assert np.array_equal(dense.labels, sparse.labels) and rows[0].gmacs == rows[1].gmacs
    assert macs[0] == macs[1]


def test_another_dense_model(picture):
    sparse, dense = (
        DynamicInferencer(f'mmdyn::upernet_{name}_mini.py', device='cpu')
        for name in ('dynswin', 'swin')
    )
    found, rows, _ = Comparer(sparse, dense, cpu_threads=1, seconds=0)(picture)
    assert [len(one.choices) for one in found] == [0, 3]
    assert [row.line.model for row in rows] == [dense.model, sparse.model]


def test_a_detector_that_works_on_tiles(picture):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmcv.ops')
    infer = DynamicInferencer(
        'mmdyn::mask_rcnn_dynfpn_dynswin_mini.py',
        device='cpu',
        cfg_options={'model.test_cfg.rpn.max_per_img': 4},
    )
    comparer = Comparer(infer, seconds=0)
    assert comparer.ratios == {'keep_ratio': 0.7, 'tile_ratio': 0.5}
    (dense, sparse), _, macs = comparer(picture, keep_ratio=0.5, tile_ratio=0.25)
    assert sparse.tiles.fraction == pytest.approx(0.25, abs=0.02)
    assert kept(sparse)[0] == pytest.approx(0.5, abs=0.02)
    assert dense.labels is None and macs[1] < macs[0]


def test_a_head_that_works_on_tiles_on_a_dense_backbone(picture):
    infer = DynamicInferencer('mmdyn::upernet_dynhead_mini.py', device='cpu')
    comparer = Comparer(infer, seconds=0)
    assert comparer.ratios == {'tile_ratio': 0.25}
    (_, sparse), *_ = comparer(picture, tile_ratio=0.5)
    assert sparse.tiles.fraction == pytest.approx(0.5, abs=0.05) and sparse.choices == ()


@pytest.mark.parametrize(('ratio', 'error'), [(0, ValueError), (1.5, ValueError), ('x', TypeError)])
def test_after_a_wrong_ratio_the_next_one_works(comparer, picture, ratio, error):
    with pytest.raises(error):
        comparer(picture, keep_ratio=ratio)
    assert kept(comparer(picture)[0][1])[0] == pytest.approx(0.7, abs=0.05)


def test_models_that_make_no_comparison(comparer):
    dense = DynamicInferencer('mmdyn::upernet_swin_mini.py', device='cpu')
    with pytest.raises(ValueError, match='upernet_swin_mini has nothing to choose'):
        Comparer(dense)
    with pytest.raises(ValueError, match='upernet_swin_mini and tiny have different classes'):
        Comparer(comparer.sparse, dense)
