"""DynamicSwin whose windows without a kept location do not attend; decisions in blocks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmdyn.deploy.exportable import check_exportable
from mmdyn.models import DynamicSwin
from mmdyn.models.backbones.swin import DynamicSwinBlock
from mmdyn.models.backbones.window_attention import (
    active_locations,
    active_windows,
    only_windows,
    window_layout,
)
from mmdyn.sparsity import Decision, FixedPolicy, RandomPolicy, ThresholdPolicy, TopKPolicy
from mmdyn.sparsity.blocks import decide_in_blocks
from mmdyn.sparsity.policy import Site

TINY = dict(
    embed_dims=16,
    depths=(1, 1, 6, 1),
    num_heads=(1, 2, 4, 8),
    window_size=4,
    drop_path_rate=0.0,
    attention='active_windows',
)
SIZES = [(256, 256), (250, 333), (97, 131), (33, 260)]


def make(seed=0, **settings):
    torch.manual_seed(seed)
    model = DynamicSwin(**TINY | dict(keep_ratios=(0.6, 0.4, 0.2)) | settings)
    model.init_weights()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('batch_size', [1, 2, 3])
@pytest.mark.parametrize('granularity', [None, 1, 3])
@torch.no_grad()
def test_masked_and_gathered_agree(size, batch_size, granularity):
    model, x = make(granularity=granularity), torch.randn(batch_size, 3, *size)
    masked, gathered = (model.forward_sparse(x, execution=how) for how in ('masked', 'gathered'))
    for one, other in zip(masked.decisions, gathered.decisions, strict=True):
        assert torch.equal(one.keep_mask, other.keep_mask)
    for one, other in zip(masked.feats, gathered.feats, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_image_is_beside_a_larger_one_what_it_is_alone():
    model, image = make(), torch.randn(1, 3, 160, 130)
    batch = torch.zeros(2, 3, 256, 256)
    batch[1] = torch.randn(3, 256, 256)
    batch[0, :, :160, :130] = image
    shapes = [(160, 130), (256, 256)]
    for execution in ('masked', 'gathered'):
        alone = model.forward_sparse(image, execution=execution)
        beside = model.forward_sparse(batch, execution=execution, valid_shapes=shapes)
        for one, other in zip(alone.feats, beside.feats, strict=True):
            height, width = one.shape[-2:]
            torch.testing.assert_close(other[:1, :, :height, :width], one, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_with_everything_kept_all_windows_attend():
    model, x = make(keep_ratios=(1.0, 1.0, 1.0)), torch.randn(2, 3, 97, 131)
    plain = DynamicSwin(**TINY | dict(attention='all_windows', keep_ratios=(1.0, 1.0, 1.0))).eval()
    plain.load_state_dict(model.state_dict())
    for one, other in zip(model(x), plain(x), strict=True):
        torch.testing.assert_close(one, other)


def test_everything_learns():
    model = make().train()
    out = model.forward_sparse(torch.randn(2, 3, 128, 160))
    sum(feat.square().mean() for feat in out.feats).backward()
    lacking = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lacking


@pytest.mark.parametrize('shift', [False, True])
@pytest.mark.parametrize('hw', [(8, 12), (9, 14)])
@torch.no_grad()
def test_in_an_active_window_it_is_the_dense_attention_and_elsewhere_nothing(shift, hw):
    torch.manual_seed(0)
    block = DynamicSwinBlock(
        8,
        2,
        16,
        window_size=4,
        shift=shift,
        sparse=True,
        attends_everywhere=False,
        qkv_bias=True,
        qk_scale=None,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.0,
        act_cfg=dict(type='GELU'),
        norm_cfg=dict(type='LN'),
    ).eval()
    count = hw[0] * hw[1]
    x, keep = torch.randn(2, count, 8), torch.zeros(2, count)
    # Not at a border, where a shifted window has parts that do not see each other.
    keep[0, 3 * hw[1] + 3] = keep[1, 4 * hw[1] + 3] = 1
    decision = Decision(keep, keep, 0.1, hw)
    out, _ = block.mix(x, hw, None, decision, 'gathered')
    dense, _ = block.mix(x, hw)
    # The kept location's own window, found without a layout: who reacts when it changes.
    moved = x + keep.unsqueeze(-1) * torch.randn(8)
    window = (block.mix(moved, hw)[0] - dense).abs().sum(-1) > 1e-6
    assert 2 <= window.sum() <= 32 and not window.all()
    torch.testing.assert_close(out[window], dense[window])
    torch.testing.assert_close(out[~window], x[~window])


@pytest.mark.parametrize('shift', [0, 2])
def test_a_part_of_a_layout_is_a_layout(shift):
    shapes = ((5, 9), (6, 7))
    layout = window_layout(shapes, (6, 9), 4, shift, torch.device('cpu'))
    keep = torch.zeros(2 * 54)
    keep[[0, 54 + 5 * 9 + 6]] = 1
    active = active_windows(keep, layout)
    assert active.sum() == 2
    places, part = only_windows(layout, active > 0)
    where = active_locations(active, layout)
    assert set(places.tolist()) == set(where.nonzero().flatten().tolist())
    assert len(part.location) == 2 * 16 and sum(part.windows) == 2
    # A slot shows the location that lies in it.
    shown = places[part.location]
    real = torch.ones(32, dtype=torch.bool).index_fill(0, part.padding, False)
    assert sorted(shown[real].tolist()) == sorted(places.tolist())
    assert torch.equal(part.location[part.slot], torch.arange(len(places)))


@pytest.mark.parametrize('policy', [None, RandomPolicy(0), ThresholdPolicy(0.4)])
@torch.no_grad()
def test_blocks_are_kept_as_one(policy):
    model = make(policy=policy, granularity=4)
    out = model.forward_sparse(torch.randn(2, 3, 256, 256), valid_shapes=[(256, 256), (200, 120)])
    for decision, ratio in zip(out.decisions, model.keep_ratios, strict=True):
        real = decision.valid_mask.view(2, 4, 4, 4, 4).transpose(2, 3).flatten(3)
        blocks = decision.keep_mask.view(2, 4, 4, 4, 4).transpose(2, 3).flatten(3)
        kept = blocks.amax(-1, keepdim=True) * real
        assert torch.equal(blocks, kept) and blocks.any()
        if policy is None:
            assert abs(decision.kept_fraction()[0].item() - ratio) <= 1 / 32


@pytest.mark.parametrize('hw', [(15, 15), (16, 16), (50, 50), (3, 5)])
@pytest.mark.parametrize('random', [True, False])
def test_blocks_at_the_border_count_by_what_they_hold(hw, random):
    torch.manual_seed(0)
    side, ratio, kept = 7, 0.3, []
    policy = RandomPolicy(0) if random else TopKPolicy()
    for _ in range(30):
        odds = torch.randn(2, hw[0] * hw[1])
        log_probs = torch.stack([F.logsigmoid(odds), F.logsigmoid(-odds)], dim=-1)
        site = Site(0, ratio, hw, images=torch.rand(2, 3, 4, 4))
        kept += decide_in_blocks(policy, log_probs, site, side).kept_fraction().tolist()
    block = min(side, hw[0]) * min(side, hw[1]) / (hw[0] * hw[1])
    if block == 1:
        assert set(kept) == {1.0}
    else:
        assert all(abs(share - ratio) <= block / 2 + 1e-6 for share in kept)


@pytest.mark.parametrize('execution', ['masked', 'gathered'])
@torch.no_grad()
def test_where_nothing_is_kept_no_window_attends(execution):
    model, x = make(), torch.randn(1, 3, 64, 64)
    decisions = model.forward_sparse(x).decisions
    none = [replace(one, keep_mask=torch.zeros_like(one.keep_mask)) for one in decisions]
    out = model.forward_sparse(x, policy=FixedPolicy(none), execution=execution)
    assert all(feat.isfinite().all() for feat in out.feats)


def test_attention_compiles_where_it_is_always_complete():
    model = make()
    blocks = [block for stage in model.stages for block in stage.blocks]
    follows = [model.has_fast_path(2, i) for i in range(6)]
    compiled = ['attend' in block.compiled_regions for block in blocks]
    assert compiled == [True, True, *(not after for after in follows), True]
    assert not all(compiled)


def test_neither_is_exported():
    with pytest.raises(ValueError, match=r"model\.backbone\.attention='all_windows'"):
        check_exportable(make())
    with pytest.raises(ValueError, match=r'model\.backbone\.granularity=4'):
        check_exportable(make(attention='all_windows', granularity=4))


@torch.no_grad()
def test_decisions_in_blocks_can_be_replayed():
    model, x = make(), torch.randn(1, 3, 160, 224)
    first = model.forward_sparse(x)
    again = model.forward_sparse(x, policy=FixedPolicy(first.decisions), execution='masked')
    for one, other in zip(first.feats, again.feats, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_less_is_computed():
    from mmdyn.analysis.complexity import count_macs

    x = torch.randn(1, 3, 256, 256)
    active, plain = make(), make(attention='all_windows', granularity=4)
    plain.load_state_dict(active.state_dict())
    assert count_macs(lambda: active(x)) < count_macs(lambda: plain(x))


@pytest.mark.parametrize(
    ('settings', 'error', 'said'),
    [
        (dict(attention='none'), ValueError, "'active_windows'.*got 'none'"),
        (dict(granularity=0), ValueError, 'got 0'),
        (dict(granularity=2.5), TypeError, 'got 2.5'),
    ],
)
def test_wrong_settings_are_named(settings, error, said):
    with pytest.raises(error, match=said):
        DynamicSwin(**TINY | settings)
