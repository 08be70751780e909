"""Sparse models on fake tensors, in one graph, with few kernel launches: needed on GPUs."""

import pytest
import timm
import torch
from mmseg.models import SwinTransformer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

import mmdyn
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.compiled import own_memory
from mmdyn.sparsity import FixedPolicy, RandomPolicy, ThresholdPolicy
from tests.test_models.traced import BACKBONES, build, images_for, launches, tensors
from tests.torch_line import needs_whole_graphs


class Counting:
    """A backend that compiles nothing and counts its calls."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph.forward


PARTS = [*BACKBONES, 'head', 'detector']
SIZES = [(2, 64, 96), (1, 72, 100)]


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('part', PARTS)
def test_nothing_depends_on_values(part, grad):
    model, real = build(part), images_for(part, 2, 64, 96)
    expected = [x.shape for x in tensors(model(real))]
    with torch.set_grad_enabled(grad), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = tree_map(mode.from_tensor, real)
        assert [x.shape for x in tensors(model(fake))] == expected
    # What is cached for this size must not be a fake tensor.
    with torch.no_grad():
        assert all(x.isfinite().all() for x in tensors(model(real)))


@pytest.mark.parametrize('part', BACKBONES)
def test_replayed_decisions_depend_on_no_values_either(part):
    model, x = build(part), images_for(part, 2, 64, 96)
    with torch.no_grad():
        out = model.forward_sparse(x, policy=RandomPolicy(1))
        policy = FixedPolicy(out.decisions)
        torch.testing.assert_close(model.forward_sparse(x, policy=policy).feats, out.feats)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model.forward_sparse(mode.from_tensor(x), policy=policy)


@needs_whole_graphs
@pytest.mark.parametrize('part', PARTS)
def test_the_whole_is_one_graph(part):
    torch._dynamo.reset()
    model = build(part)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    for size in SIZES:  # by default the second one is compiled for dynamic sizes
        x = images_for(part, *size)
        torch.testing.assert_close(tensors(compiled(x)), tensors(model(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs_whole_graphs
@pytest.mark.parametrize('part', PARTS)
def test_the_code_that_torch_makes_by_default_computes_the_same(part):
    torch._dynamo.reset()
    model = build(part)
    compiled, x = torch.compile(model, fullgraph=True), images_for(part, *SIZES[0])
    with torch.no_grad():
        torch.testing.assert_close(tensors(compiled(x)), tensors(model(x)), rtol=1e-5, atol=1e-5)


@needs_whole_graphs
@pytest.mark.parametrize('part', ['swin', 'convnext', 'vit', 'head'])
def test_compile_model_makes_one_graph_a_size_and_keeps_values_and_names(part):
    torch._dynamo.reset()
    model, backend = build(part), Counting()
    names, xs = list(model.state_dict()), [images_for(part, *size) for size in SIZES]
    with torch.inference_mode():
        expected = [model.forward_sparse(x) for x in xs]
        for _ in range(2):  # the second call replaces the first
            assert mmdyn.compile_model(model, backend=backend) is model
        for x, eager in zip(xs, expected, strict=True):
            out = model.forward_sparse(x)
            torch.testing.assert_close(out.feats, eager.feats, rtol=1e-5, atol=1e-5)
            for ours, theirs in zip(out.decisions, eager.decisions, strict=True):
                assert torch.equal(ours.keep_mask, theirs.keep_mask)
    assert backend.graphs == len(SIZES)
    assert list(model.state_dict()) == names


@needs_whole_graphs
def test_ratios_have_graphs_of_their_own():
    torch._dynamo.reset()
    model, x, backend = build('convnext'), images_for('convnext', 1, 64, 96), Counting()
    mmdyn.compile_model(model, backend=backend)
    with torch.no_grad():
        for ratios in ((0.7, 0.5, 0.3), (0.9, 0.7, 0.5), (0.7, 0.5, 0.3)):
            model.set_keep_ratios(ratios)
            kept = [int(d.keep_mask.sum()) for d in model.forward_sparse(x).decisions]
            assert kept == [int(24 * ratio) for ratio in ratios]
    assert backend.graphs == 2


@needs_whole_graphs
def test_what_no_graph_was_made_for_runs_as_before():
    torch._dynamo.reset()
    model, x, backend = build('swin'), images_for('swin', 2, 64, 96), Counting()
    shapes = [(64, 96), (50, 60)]
    cases = [
        dict(policy=RandomPolicy(1)),
        dict(policy=ThresholdPolicy(0.4)),
        dict(execution='masked'),
        dict(valid_shapes=shapes),
    ]
    with torch.no_grad():
        expected = [model.forward_sparse(x, **case).feats for case in cases]
        mmdyn.compile_model(model, backend=backend)
        for case, feats in zip(cases, expected, strict=True):
            torch.testing.assert_close(model.forward_sparse(x, **case).feats, feats)
        assert not backend.graphs
        # A batch with metainfo but without padding.
        model.forward_sparse(x, valid_shapes=[(64, 96)] * 2)
    assert backend.graphs == 1


@needs_whole_graphs
def test_sizes_are_bounded_and_more_run_eagerly(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr('mmdyn.models.compiled.MAX_SIZES', 2)
    backend = Counting()
    model = mmdyn.compile_model(build('convnext'), backend=backend)
    said = []
    monkeypatch.setattr('mmdyn.models.compiled.print_log', lambda text, **_: said.append(text))
    with torch.no_grad():
        for width in (64, 96, 128, 160, 64):
            model(torch.randn(1, 3, 64, width))
    assert backend.graphs == 2
    assert len(said) == 1 and '128' in said[0]


def test_what_leaves_a_cuda_graph_has_memory_of_its_own():
    model, x = build('swin'), images_for('swin', 2, 64, 96)
    with torch.no_grad():
        out = model.forward_sparse(x)
    own = own_memory(out)
    kept = [(d.scores, d.keep_mask) for d in own.decisions]
    ours = [*own.feats, *tensors(kept)]
    theirs = [*out.feats, *tensors([(d.scores, d.keep_mask) for d in out.decisions])]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not {part.data_ptr() for part in ours} & {part.data_ptr() for part in theirs}
    assert [d.slow_counts for d in own.decisions] == [d.slow_counts for d in out.decisions]


@needs_whole_graphs
def test_an_older_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.1.2')
    with pytest.raises(ImportError, match=r'2\.1\.2: use mmdyn.models.compiled.compile_regions'):
        mmdyn.compile_model(build('convnext'))


@needs_whole_graphs
def test_a_model_with_nothing_sparse_is_refused():
    with pytest.raises(ValueError, match='Linear has nothing to compile'):
        mmdyn.compile_model(nn.Linear(2, 2))


@needs_whole_graphs
@pytest.mark.parametrize('part', PARTS)
def test_export_needs_no_other_model(part):
    model, x, other = build(part), images_for(part, 1, 64, 96), images_for(part, 1, 64, 96, seed=1)
    with torch.no_grad():
        program = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(tensors(program(other)), tensors(model(other)))


@needs_whole_graphs
@pytest.mark.parametrize('part', ['swin', 'convnext', 'vit', 'head'])
def test_scores_that_are_no_numbers_stop_a_graph_too(part):
    torch._dynamo.reset()
    model = build(part)
    with torch.no_grad():
        x = images_for(part, 1, 64, 96)
        compiled = torch.compile(model, fullgraph=True, backend='eager')
        compiled(x)
        bad = tree_map(lambda one: one * float('nan'), x)
        with pytest.raises(ValueError, match=r'predictors\.0'):
            model(bad)
        with pytest.raises(RuntimeError, match=r'predictors\.0'):
            compiled(bad)


@pytest.mark.parametrize('part', BACKBONES)
def test_at_ratio_1_no_predictor_runs_in_evaluation(part):
    model = build(part)
    model.set_keep_ratios((1.0, 1.0, 1.0))
    for predictor in model.predictors:
        predictor.forward = None  # calling it fails
    with torch.no_grad():
        out = model.forward_sparse(images_for('swin', 2, 64, 96))
    for decision in out.decisions:
        assert (decision.keep_mask == 1).all() and (decision.scores == 0).all()
        assert decision.all_slow


def test_a_forward_launches_little():
    # At small sizes a GPU is limited by launches. mmseg's Swin launches per window operation.
    x = torch.randn(1, 3, 512, 512)
    stock, ours = SwinTransformer(), DynamicSwin()
    stock.eval()
    ours.eval()
    of_stock = launches(stock, x)
    assert launches(ours, x) <= 0.72 * of_stock
    ours.set_keep_ratios((1.0, 1.0, 1.0))
    assert launches(ours, x) <= 0.65 * of_stock


@pytest.mark.parametrize(
    ('stock', 'ours', 'most'),
    [
        ('convnext_tiny', lambda: DynamicConvNeXt('tiny'), 2.2),
        ('deit_small_patch16_224', lambda: DynamicViT(embed_dims=384, num_heads=6), 1.75),
    ],
    ids=['ConvNeXt-T', 'DeiT-S'],
)
def test_decisions_and_second_paths_add_so_many_launches(stock, ours, most):
    x = torch.randn(1, 3, 224, 224)
    ours = ours().eval()
    of_stock = launches(timm.create_model(stock).eval(), x)
    assert launches(ours, x) <= most * of_stock
    ours.set_keep_ratios((1.0, 1.0, 1.0))
    assert launches(ours, x) <= 1.15 * of_stock
