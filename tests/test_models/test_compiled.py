"""Regions of sparse backbones under torch.compile."""

import pytest
import torch
from torch import nn

from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.compiled import compile_regions
from tests.torch_line import needs_shared_graphs

SWIN = dict(embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2), window_size=4)
CONVNEXT = dict(arch=dict(depths=(1, 1, 4, 1), channels=(8, 16, 32, 64)))
VIT = dict(embed_dims=32, num_layers=4, num_heads=2, sparse_blocks=(1, 2, 3), out_indices=(1, 3))
BACKBONES = [(DynamicSwin, SWIN), (DynamicConvNeXt, CONVNEXT), (DynamicViT, VIT)]


@pytest.mark.parametrize(
    ('backbone', 'settings'), BACKBONES, ids=lambda v: getattr(v, '__name__', '')
)
def test_compiled_regions_compute_the_same_at_every_size(backbone, settings):
    torch.manual_seed(0)
    model = backbone(**settings).eval()
    keys = list(model.state_dict())
    images = [torch.randn(1, 3, *hw) for hw in ((64, 64), (64, 96))]
    with torch.no_grad():
        expected = [model(x) for x in images]
        # The traced graph, without minutes of C++ compilation.
        assert compile_regions(model, backend='aot_eager') is model
        for x, feats in zip(images, expected, strict=True):
            for ours, theirs in zip(model(x), feats, strict=True):
                torch.testing.assert_close(ours, theirs)
    assert list(model.state_dict()) == keys


@needs_shared_graphs
def test_blocks_of_a_stage_share_what_is_compiled():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    # Four blocks with different drop path rates: two kinds of windows, one MLP, sparse or not.
    model = DynamicSwin(
        **{**SWIN, 'depths': (8,), 'num_heads': (2,), 'strides': (4,)},
        sparse_stage=0,
        sparse_blocks=(4,),
        keep_ratios=(0.5,),
        out_indices=(0,),
    ).eval()
    compile_regions(model, backend=backend)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    # Windows, shifted ones, MLP, MLP of kept locations, fast path.
    assert len(graphs) == 5


def test_a_model_without_regions_is_refused():
    with pytest.raises(ValueError, match='Linear has no regions to compile'):
        compile_regions(nn.Linear(2, 2))
