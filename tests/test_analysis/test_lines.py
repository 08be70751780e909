"""Lines of a model."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')

from mmdyn.analysis.lines import Line, as_set, dense, lines_of, restored
from mmdyn.engine.loading import load_model
from mmdyn.models import DynamicSwin
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
    loaded = load_model('mmdyn::upernet_swin_mini.py', None)
    assert [line.name for line in lines_of(loaded)] == ['dense']
    with pytest.raises(ValueError, match='has none'):
        lines_of(loaded, tile_ratios=[0.5])


@pytest.mark.parametrize(('dtype', 'expected'), [('fp32', torch.float32), ('bf16', torch.bfloat16)])
def test_runs_in_the_dtype(dtype, expected):
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    run = Line('dense', model).runner('backbone', dtype)
    assert run(SimpleNamespace(inputs=torch.zeros(1, 2))).dtype is expected


def test_a_backbone_keeps_what_its_line_says():
    model, kept = nn.Module(), []
    model.backbone = DynamicSwin(embed_dims=16, depths=(1, 1, 5, 1), num_heads=(1, 2, 4, 8)).eval()
    model.backbone.forward = lambda x: kept.append(
        [
            round(decision.kept_fraction().item(), 3)
            for decision in model.backbone.forward_sparse(x).decisions
        ]
    )
    batch = SimpleNamespace(inputs=torch.randn(1, 3, 64, 64))
    runs = [
        Line('learned', model, ratios, policy).runner('backbone')
        for ratios, policy in (((0.5, 0.5, 0.25), TopKPolicy()), ((1, 1, 1), RandomPolicy(0)))
    ]
    own = as_set(model)
    with restored(model):
        for run in (*runs, runs[0]):
            run(batch)
    assert kept == [[0.5, 0.5, 0.25], [1, 1, 1], [0.5, 0.5, 0.25]]
    assert as_set(model) == own
    with dense(model):
        assert as_set(model).keeps_everything and not own.keeps_everything
