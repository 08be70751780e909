"""Property-based tests for any map, keep ratio and batch: mechanism, then small backbones."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.shapes import shapes_on
from mmdyn.sparsity import (
    Decision,
    FixedPolicy,
    GumbelPolicy,
    RandomPolicy,
    StaticPolicy,
    ThresholdPolicy,
    TopKPolicy,
    keep_ratio_loss,
    route,
)
from mmdyn.sparsity.decision import check_valid_shapes, valid_mask_of
from mmdyn.sparsity.policy import Site, keep_count
from mmdyn.sparsity.ratios import falling_keep_ratios
from mmdyn.sparsity.tile_routing import Tiles, cut, paste, route_tiles
from mmdyn.sparsity.tiles import TileGrid
from mmdyn.sparsity.tokens import split_tokens
from tests.test_reliability.examples import examples
from tests.torch_line import HALVES

SECTION = 'Properties'
FEW, MANY = 60, 2000

SIDES = st.integers(1, 9)
RATIOS = st.one_of(
    st.floats(0, 1, exclude_min=True), st.sampled_from([1.0, 5e-324, 1e-9, 0.5, 0.7, 1 - 2**-53])
)
DTYPES = st.sampled_from([torch.float32, torch.float64, *HALVES])
POLICIES = st.sampled_from(
    [TopKPolicy(), GumbelPolicy(), ThresholdPolicy(0.5), RandomPolicy(3), StaticPolicy(3)]
)
COUNTING = st.sampled_from([TopKPolicy(), RandomPolicy(3), StaticPolicy(3)])


@pytest.fixture(autouse=True)
def drawn(request, figure):
    """Record how many examples a test drew."""
    before = examples.drawn
    yield
    if examples.drawn > before:
        name = request.node.name.removeprefix('test_').replace('_', ' ')
        figure(SECTION, name, examples.drawn - before)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def maps(draw):
    """Batch, height and width."""
    return draw(st.integers(1, 3)), draw(SIDES), draw(SIDES)


@st.composite
def masks(draw, batch, locations):
    """(B, N) bool in which every image has at least one True."""
    mask = torch.rand(batch, locations, generator=generator(draw(st.integers(0, 99)))) < draw(
        st.sampled_from([0.0, 0.3, 0.8])
    )
    mask[torch.arange(batch), draw(st.integers(0, locations - 1))] = True
    return mask


@st.composite
def scores(draw, batch, locations, dtype=torch.float32):
    """(B, N, 2) log-probabilities: any, all equal, with ties, or close to certain."""
    logits = torch.randn(batch, locations, 2, generator=generator(draw(st.integers(0, 999))))
    kind = draw(st.sampled_from(['any', 'equal', 'ties', 'certain']))
    if kind == 'equal':
        logits = torch.zeros_like(logits)
    elif kind == 'ties':
        logits = logits.round()
    elif kind == 'certain':
        logits = logits * 40
    return logits.log_softmax(-1).to(dtype).requires_grad_()


@st.composite
def questions(draw, ratios=RATIOS, dtypes=DTYPES):
    """Scores and a matching site."""
    batch, height, width = draw(maps())
    locations = height * width
    log_probs = draw(scores(batch, locations, draw(dtypes)))
    site = Site(
        index=draw(st.integers(0, 3)),
        keep_ratio=draw(ratios),
        hw=(height, width),
        valid_mask=draw(st.one_of(st.none(), masks(batch, locations))),
        images=torch.rand(batch, 3, 4, 4, generator=generator(draw(st.integers(0, 99)))),
    )
    if draw(st.booleans()):
        candidates = draw(masks(batch, locations)).float()
        if site.valid_mask is not None:
            candidates = candidates * site.valid_mask
            assume(candidates.sum(1).min() > 0)
        site = replace(site, candidates=candidates)
    return log_probs, site


# ---------------------------------------------------------------- decisions


@examples(FEW, MANY, question=questions(), policy=POLICIES)
def test_any_policy_on_any_map_keeps_what_may_be_kept(question, policy):
    log_probs, site = question
    decision = policy(log_probs, site)
    mask = decision.keep_mask.detach()
    assert mask.shape == log_probs.shape[:2] and mask.is_floating_point()
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    may = torch.ones_like(mask)
    if site.valid_mask is not None:
        may = may * site.valid_mask
    if site.candidates is not None:
        may = may * site.candidates
    assert (mask <= may).all()
    if not isinstance(policy, GumbelPolicy):  # random
        assert (mask.sum(1) >= 1).all()
    if site.keep_ratio == 1:
        assert torch.equal(mask.bool(), may.bool())
    decision.keep_mask.sum().backward()
    assert log_probs.grad.isfinite().all()
    kept, dropped = decision.keep_idx, decision.drop_idx
    assert torch.equal(torch.cat([kept, dropped]).sort().values, torch.arange(mask.numel()))
    fraction = decision.kept_fraction()
    assert ((fraction >= 0) & (fraction <= 1)).all()
    assert keep_ratio_loss([decision]).isfinite()


@examples(FEW, MANY, question=questions(), policy=COUNTING)
def test_counts_are_exact_and_ties_go_to_the_lower_index(question, policy):
    log_probs, site = question
    first, second = (policy(log_probs, site).keep_mask.detach() for _ in range(2))
    assert torch.equal(first, second)
    for i, row in enumerate(first):
        real = row.numel() if site.valid_mask is None else int(site.valid_mask[i].sum())
        room = real if site.candidates is None else int(site.candidates[i].sum())
        wanted = real if site.keep_ratio == 1 else keep_count(real, site.keep_ratio)
        assert int(row.sum()) == min(wanted, room)
        if isinstance(policy, TopKPolicy):
            may = torch.ones_like(row) if site.candidates is None else site.candidates[i]
            may = may if site.valid_mask is None else may * site.valid_mask[i]
            places = [n for n in range(row.numel()) if may[n]]
            best = sorted(places, key=lambda n: (-log_probs[i, n, 0].item(), n))
            assert row.nonzero().flatten().tolist() == sorted(best[: min(wanted, room)])


@examples(FEW, MANY, question=questions(), policy=POLICIES)
def test_fixed_decisions_are_replayed(question, policy):
    log_probs, site = question
    given_ = policy(log_probs, replace(site, index=0))
    again = FixedPolicy([given_])(log_probs, replace(site, index=0))
    assert torch.equal(again.keep_mask, given_.keep_mask)


@examples(
    FEW, MANY, ratio=RATIOS, count=st.integers(1, 40), kind=st.sampled_from(['linear', 'geometric'])
)
def test_any_ladder_falls_within_bounds(ratio, count, kind):
    ladder = falling_keep_ratios(ratio, count, kind)
    assert len(ladder) == count and all(0 < step <= 1 for step in ladder)
    assert all(later <= earlier for earlier, later in itertools.pairwise(ladder))


@examples(FEW, MANY, data=st.data())
def test_real_locations_are_counted_by_hand(data):
    stride = data.draw(st.sampled_from([1, 2, 4, 16]))
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    shape = st.tuples(st.integers(1, height), st.integers(1, width))
    shapes = data.draw(st.lists(shape, min_size=1, max_size=3))
    hw = math.ceil(height / stride), math.ceil(width / stride)
    check_valid_shapes(shapes, len(shapes), (height, width))
    own = shapes_on(torch.zeros(len(shapes), 1, *hw), (), shapes, stride)
    mask = valid_mask_of(own, hw, torch.device('cpu'))
    if mask is None:
        assert all(shape == hw for shape in own)
        return
    for row, (h, w) in zip(mask.unflatten(1, hw), shapes, strict=True):
        expected = torch.zeros(hw, dtype=torch.bool)
        expected[: math.ceil(h / stride), : math.ceil(w / stride)] = True
        assert torch.equal(row, expected) and row.any()


# ---------------------------------------------------------------- execution


def arranged(x, how):
    """The same (B, N, C) values in another memory layout."""
    if how == 'transposed':
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if how == 'strided':
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    if how == 'batch last':
        return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return x


MEMORIES = st.sampled_from(['plain', 'transposed', 'strided', 'batch last'])


@examples(
    FEW, MANY, question=questions(dtypes=st.just(torch.float64)), policy=POLICIES, memory=MEMORIES
)
def test_masked_and_gathered_are_the_same_function(question, policy, memory):
    torch.manual_seed(0)
    slow = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)).double()
    fast = nn.Linear(4, 4).double()
    weights = [*slow.parameters(), *fast.parameters()]
    log_probs, site = question
    decision = policy(log_probs, site)
    x = torch.randn(*log_probs.shape[:2], 4, generator=generator(1), dtype=torch.float64)
    inputs = arranged(x, memory).requires_grad_()
    outs = [route(inputs, decision, slow, fast, how) for how in ('masked', 'gathered')]
    torch.testing.assert_close(*outs, atol=1e-12, rtol=1e-10)
    grads = [
        # An unused path is not part of the gathered graph: its gradient is 0.
        torch.autograd.grad(
            out.square().sum(), [inputs, *weights], retain_graph=True, materialize_grads=True
        )
        for out in outs
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


@examples(
    FEW,
    MANY,
    question=questions(),
    policy=POLICIES,
    memory=MEMORIES,
    prefix=st.integers(0, 2),
    dtype=DTYPES,
)
def test_gather_then_scatter_is_the_identity(question, policy, memory, prefix, dtype):
    log_probs, site = question
    decision = policy(log_probs, site)
    batch, locations = log_probs.shape[:2]
    x = torch.randn(batch, prefix + locations, 4, generator=generator(2)).to(dtype)
    for execution in ('masked', 'gathered'):
        tokens = split_tokens(arranged(x, memory), decision, execution)
        assert torch.equal(tokens.joined(), x)
    x = x[:, prefix:]
    out = route(arranged(x, memory), decision, lambda y: y, lambda y: y, 'gathered')
    assert torch.equal(out, x) and out.dtype == dtype


@st.composite
def tilings(draw):
    """A map with its tiles, and some of them."""
    batch, height, width = draw(maps())
    grid = TileGrid((height, width), draw(st.integers(1, 10)))
    tiles = grid.shape[0] * grid.shape[1]
    keep = torch.rand(batch, tiles, generator=generator(draw(st.integers(0, 99))))
    keep = (keep < draw(st.sampled_from([0.0, 0.5, 1.0]))).float()
    memory = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    x = torch.randn(batch, 3, height, width, generator=generator(4), dtype=torch.float64)
    return x.contiguous(memory_format=memory), grid, keep


@examples(FEW, MANY, tiling=tilings(), halo=st.integers(0, 2))
def test_tiles_cut_and_pasted_are_the_map(tiling, halo):
    x, grid, keep = tiling
    chosen = keep.flatten().nonzero().squeeze(1)
    tiles, windows = cut(x, grid, chosen, halo), grid.windows(chosen, halo)
    if len(chosen):
        assert torch.equal(tiles, windows.take(x))  # the implementation for GPUs
    inner = tiles[..., halo : halo + grid.tile, halo : halo + grid.tile]
    out = torch.zeros_like(x)
    out = paste(out, inner, grid, chosen)
    assert torch.equal(out, x * grid.spread(keep).unsqueeze(1))
    pixels = torch.zeros(x.permute(0, 2, 3, 1).shape, dtype=x.dtype)
    if len(chosen):
        pixels = grid.put(pixels, chosen, inner.permute(0, 2, 3, 1))
    assert torch.equal(pixels.permute(0, 3, 1, 2), out)
    counts = grid.counts(torch.ones(1, grid.hw[0] * grid.hw[1], dtype=torch.bool))
    assert int(counts.sum()) == grid.hw[0] * grid.hw[1]
    means = (grid.means(x).transpose(1, 2) * counts).sum(-1) / counts.sum()
    torch.testing.assert_close(means, x.mean((2, 3)))


@examples(FEW, MANY, tiling=tilings())
def test_tiles_masked_and_gathered_are_the_same_function(tiling):
    torch.manual_seed(0)
    dense, point = nn.Conv2d(3, 2, 3).double(), nn.Conv2d(3, 2, 1).double()
    x, grid, keep = tiling
    decision = Decision(keep, keep, 0.5, grid.shape)
    outs = [
        route_tiles(x, Tiles(grid, decision, how), dense, point) for how in ('masked', 'gathered')
    ]
    torch.testing.assert_close(*outs, atol=1e-12, rtol=1e-10)


# ---------------------------------------------------------------- backbones


def swin(blocks, depth, dims, **kwargs):
    stages = dict(depths=(1, 1, depth, 1), num_heads=(1,) * 4, window_size=dims // 2)
    return DynamicSwin(embed_dims=dims, sparse_blocks=blocks, **stages, **kwargs)


def convnext(blocks, depth, dims, **kwargs):
    arch = dict(depths=(1, 1, depth, 1), channels=[dims * 2**i for i in range(4)])
    return DynamicConvNeXt(arch=arch, layer_scale_init_value=1.0, sparse_blocks=blocks, **kwargs)


def vit(blocks, depth, dims, **kwargs):
    sizes = dict(img_size=32, patch_size=8, num_heads=2, out_indices=(depth - 1,))
    return DynamicViT(
        embed_dims=dims * 2, num_layers=depth, sparse_blocks=blocks, **sizes, **kwargs
    )


MAKERS = {'swin': (swin, 1), 'convnext': (convnext, 32), 'vit': (vit, 1)}
"""Constructor of a backbone, and the smallest side of its images."""


@st.composite
def backbones(draw, name):
    """A tiny backbone with distinct scores in double precision, and images for it."""
    make, least = MAKERS[name]
    depth = draw(st.integers(1, 5))
    blocks = sorted(draw(st.sets(st.integers(0, depth - 1), min_size=1)))
    ratios = sorted((draw(RATIOS) for _ in blocks), reverse=True)
    torch.manual_seed(draw(st.integers(0, 99)))
    model = make(blocks, depth, draw(st.sampled_from([4, 6])), keep_ratios=ratios)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    side = st.one_of(st.just(least), st.integers(least, 90))
    shape = draw(st.integers(1, 3)), 3, draw(side), draw(side)
    images = torch.randn(shape, dtype=torch.float64)
    layout = draw(st.sampled_from(['plain', 'channels last', 'transposed', 'strided']))
    if layout == 'channels last':
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == 'transposed':
        images = images.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == 'strided':
        images = images.repeat_interleave(2, 3)[..., ::2]
    valid = None
    if draw(st.booleans()):
        one = st.tuples(st.integers(least, shape[2]), st.integers(least, shape[3]))
        valid = draw(st.lists(one, min_size=shape[0], max_size=shape[0]))
    return model.double().eval(), images, valid


def close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        scale = other.abs().max().clamp(min=1)
        assert (one - other).abs().max() <= 1e-9 * scale


@pytest.mark.parametrize('name', MAKERS)
@examples(12, 400, data=st.data())
def test_backbones_run_both_ways_alike(name, data):
    model, images, valid = data.draw(backbones(name))
    with torch.no_grad():
        out = model.forward_sparse(images, valid_shapes=valid)
        replay = FixedPolicy(out.decisions)
        masked = model.forward_sparse(images, valid_shapes=valid, execution='masked', policy=replay)
        plain = model.forward_sparse(
            images.contiguous(), valid_shapes=valid, policy=replay,
            memory_format=torch.channels_last,
        )  # fmt: skip
    close(out.feats, masked.feats)
    close(out.feats, plain.feats)
    assert len(out.decisions) == len(model.predictors)
    before = None
    for decision, ratio in zip(out.decisions, model.keep_ratios, strict=True):
        kept = decision.keep_mask.sum(1).tolist()
        real = decision.valid_mask
        for i, count in enumerate(kept):
            number = decision.keep_mask.shape[1] if real is None else int(real[i].sum())
            wanted = number if ratio == 1 else keep_count(number, ratio)
            if model.decisions_shrink and before is not None:
                wanted = min(wanted, int(before[i]))
            assert count == wanted
        before = kept
    for feat in out.feats:
        assert feat.shape[0] == len(images) and feat.isfinite().all() and feat.is_contiguous()


class Constant(FixedPolicy):
    """Given decisions without a gradient to predictors, which only masked execution has."""

    def __call__(self, log_probs, site):
        decision = super().__call__(log_probs, site)
        return replace(decision, keep_mask=decision.keep_mask.detach())


@pytest.mark.parametrize('name', MAKERS)
@examples(5, 150, data=st.data())
def test_backbones_learn_both_ways_alike(name, data):
    model, images, valid = data.draw(backbones(name))
    with torch.no_grad():
        replay = Constant(model.forward_sparse(images, valid_shapes=valid).decisions)
    grads = []
    for execution in ('masked', 'gathered'):
        model.zero_grad()
        out = model.forward_sparse(images, valid_shapes=valid, execution=execution, policy=replay)
        sum(feat.square().mean() for feat in out.feats).backward()
        grads.append(
            [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        )
    close(*grads)
    model.train()
    out = model.forward_sparse(images, valid_shapes=valid)
    loss = sum(feat.square().mean() for feat in out.feats) + keep_ratio_loss(out.decisions)
    model.zero_grad()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    learning = [p.grad for n, p in model.named_parameters() if n.startswith('predictors.')]
    assert all(grad is not None for grad in learning)


@pytest.mark.parametrize('name', MAKERS)
@examples(4, 100, data=st.data(), dtype=st.sampled_from(HALVES))
def test_backbones_in_half_precision(name, data, dtype):
    model, images, valid = data.draw(backbones(name))
    # oneDNN's bfloat16 convolution (torch 2.10) is wrong for maps one column wide; a map of at most
    # 64 pixels may become that small.
    narrow = dtype is torch.bfloat16 and images.shape[3] <= 64
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=not narrow):
        out = model.float().to(dtype).forward_sparse(images.to(dtype), valid_shapes=valid)
    assert all(feat.dtype == dtype and feat.isfinite().all() for feat in out.feats)
    for decision, ratio in zip(out.decisions, model.keep_ratios, strict=True):
        if decision.valid_mask is None and not model.decisions_shrink:
            wanted = keep_count(decision.keep_mask.shape[1], ratio)
            assert decision.keep_mask.float().sum(1).eq(wanted).all() or ratio == 1
