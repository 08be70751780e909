"""Which contenders a model is measured against."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.analysis.loading import load_model
from mmdyn.analysis.model_benchmark import lines_of
from mmdyn.sparsity import RandomPolicy, ThresholdPolicy, TopKPolicy


def test_a_head_that_chooses_tiles_on_a_dense_backbone():
    loaded = load_model('mmdyn::upernet_dynhead_mini.py', None)
    head = loaded.model.decode_head
    head.policy = ThresholdPolicy(0.4)
    lines = lines_of(loaded)
    assert [line.name for line in lines] == ['dense', 'learned tiles 0.25', 'random tiles 0.25']
    kinds = [type(line.tile_policy) for line in lines]
    assert kinds == [TopKPolicy, ThresholdPolicy, RandomPolicy]
    seen, batch = [], SimpleNamespace(inputs=torch.zeros(1, 3, 64, 64))
    for line in lines:
        line.runner('backbone', 'fp32')(batch)
        seen.append((head.tile_ratio, type(head.policy)))
    assert seen == [(1.0, TopKPolicy), (0.25, ThresholdPolicy), (0.25, RandomPolicy)]


def test_keep_ratios_are_for_a_sparse_backbone():
    loaded = load_model('mmdyn::upernet_dynhead_mini.py', None)
    with pytest.raises(ValueError, match='has a SwinTransformer'):
        lines_of(loaded, [(0.5,)])
