"""Properties of every sparse backbone."""

import re
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch

from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.sparsity import (
    Decision,
    FixedPolicy,
    RandomPolicy,
    ThresholdPolicy,
    TopKPolicy,
    keep_ratio_loss,
)

ARCH = dict(depths=(1, 1, 5, 1), channels=(16, 32, 64, 128))
SWIN = dict(embed_dims=16, depths=(1, 1, 5, 1), num_heads=(1, 2, 4, 8), drop_path_rate=0.0)
VIT = dict(img_size=64, patch_size=16, embed_dims=32, num_layers=8, num_heads=4)


class Case(NamedTuple):
    """A tiny backbone, and its expected properties."""

    make: type
    settings: dict
    # (H, W) of the maps of a 97x131 image, and of the sparse map of a 50x70 one.
    maps: list
    small: tuple
    # Frozen modules by frozen_stages.
    frozen: dict
    ratios: tuple = (0.7, 0.5, 0.3)


def stages(*names):
    return [f'{name}{i}' for i in range(3) for name in names] + ['predictors']


CASES = {
    'swin': Case(
        DynamicSwin,
        SWIN,
        [(25, 33), (13, 17), (7, 9), (4, 5)],
        (4, 5),
        {
            0: ['patch_embed'],
            1: ['patch_embed', 'stages.0', 'norm0'],
            3: ['patch_embed', *stages('stages.', 'norm')],
        },
    ),
    'convnext': Case(
        DynamicConvNeXt,
        dict(arch=ARCH, layer_scale_init_value=1.0),
        [(24, 32), (12, 16), (6, 8), (3, 4)],
        (3, 4),  # incomplete patches are dropped
        {
            0: [],
            1: ['downsample_layers.0', 'stages.0'],
            3: stages('downsample_layers.', 'stages.'),
        },
    ),
    'vit': Case(
        DynamicViT,
        VIT,
        [(7, 9)] * 4,
        (4, 5),
        {
            0: ['patch_embed'],
            4: ['patch_embed', *(f'blocks.{i}' for i in range(4)), 'predictors.0'],
            8: ['patch_embed', *(f'blocks.{i}' for i in range(8))]
            + [f'predictors.{k}' for k in range(3)],
        },
        (0.7, 0.49, 0.343),
    ),
}
STAGED = pytest.mark.parametrize('case', ['swin', 'convnext'], indirect=True)
ONES = (1.0, 1.0, 1.0)
SHAPES = [(97, 131), (50, 70)]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def make_live(make, **settings):
    """A backbone with random weights, so that every layer matters."""
    torch.manual_seed(0)
    model = make(**settings)
    model.init_weights()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def build(case):
    return lambda **kwargs: make_live(case.make, **{**case.settings, **kwargs})


def images(batch=2, hw=(97, 131), seed=0):
    return torch.randn(batch, 3, *hw, generator=torch.Generator().manual_seed(seed))


def loss_of(out):
    return sum(f.square().mean() for f in out.feats) + keep_ratio_loss(out.decisions)


def assert_same(feats, others):
    for one, other in zip(feats, others, strict=True):
        assert one.shape == other.shape
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, atol=1e-5, rtol=0)


def assert_same_gradients(ours, theirs, our_name=str, atol=2e-4):
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max()
            grad = own[our_name(name)].grad
            torch.testing.assert_close(
                grad / scale, parameter.grad / scale, atol=atol, rtol=0, msg=name
            )


def assert_all_learn(model):
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name


@STAGED
@pytest.mark.parametrize('hw', [(64, 64), (97, 131), (150, 70)])
@pytest.mark.parametrize('batch', [1, 2, 3])
def test_masked_and_gathered_agree_flips_included(build, batch, hw):
    model, x = build().eval(), images(batch, hw)
    with torch.no_grad():
        masked = model.forward_sparse(x, policy=RandomPolicy(1), execution='masked')
        replay = FixedPolicy(masked.decisions)
        gathered = model.forward_sparse(x, policy=replay, execution='gathered')
    first, second, _ = (d.keep_mask.bool() for d in masked.decisions)
    if masked.decisions[0].keep_mask.shape[1] > 8:
        assert (first & ~second).any() and (~first & second).any()
    assert_same(gathered.feats, masked.feats)


def test_every_parameter_gets_a_finite_gradient(build):
    model = build().train()
    out = model.forward_sparse(images())
    assert all(0 < d.kept_fraction().min() and d.kept_fraction().max() < 1 for d in out.decisions)
    loss_of(out).backward()
    assert_all_learn(model)


def test_ratio_one_in_training_is_the_dense_model_with_gradient_to_the_predictors(build):
    model, x = build(keep_ratios=ONES).train(), images()
    out = model.forward_sparse(x)
    with torch.no_grad():
        dense = model.eval()(x)
    assert_same([f.detach() for f in out.feats], dense)
    sum(f.square().mean() for f in out.feats).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all((p.grad != 0).any() for p in model.predictors[0].parameters())


def test_init_weights_draws_every_weight_and_table(case):
    torch.manual_seed(0)
    extra = dict(use_abs_pos_embed=True) if case.make is DynamicSwin else {}
    model = case.make(**case.settings, **extra)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith('bias'):
            assert (parameter == 0).all() or 'patch_embed' in name, name
        elif parameter.dim() == 1:  # norms and layer scales
            assert (parameter == 1).all(), name
        elif 'patch_embed' in name:  # as in the host
            assert parameter.std() > 0.01, name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.35), name


def test_auto_execution_and_policy_follow_the_mode(case, build):
    model, x = build(), images()
    with torch.no_grad():
        first, second = (model.train().forward_sparse(x).decisions[0] for _ in range(2))
        assert not torch.equal(first.keep_mask, second.keep_mask)
        first, second = (model.eval().forward_sparse(x).decisions[0] for _ in range(2))
        assert torch.equal(first.keep_mask, second.keep_mask)
        explicit = model.forward_sparse(x, policy=TopKPolicy(), execution='gathered')
    assert torch.equal(first.keep_mask, explicit.decisions[0].keep_mask)
    locations = first.hw[0] * first.hw[1]
    assert [d.keep_mask.sum(1).tolist() for d in explicit.decisions] == [
        [int(locations * ratio)] * 2 for ratio in case.ratios
    ]


def test_forward_gives_the_maps_of_forward_sparse_contiguous_unless_asked_otherwise(case, build):
    model, x = build().eval(), images()
    last = torch.channels_last
    with torch.no_grad():
        feats, out = model(x), model.forward_sparse(x, memory_format=last)
    assert isinstance(feats, tuple) and [f.shape[2:] for f in feats] == case.maps
    assert_same(feats, out.feats)
    # mmcv's RoIAlign assumes contiguous memory.
    assert all(feat.is_contiguous() for feat in feats)
    assert all(feat.is_contiguous(memory_format=last) for feat in out.feats)


def test_set_keep_ratios_changes_the_next_forward(build):
    model, x = build().eval(), images()
    model.set_keep_ratios(ratios=np.array([0.5, 0.5, 0.25]))
    with torch.no_grad():
        decisions = model.forward_sparse(x).decisions
    assert [d.keep_ratio for d in decisions] == [0.5, 0.5, 0.25]
    locations = decisions[0].keep_mask.shape[1]
    assert decisions[2].keep_mask.sum(1).tolist() == [int(locations * 0.25)] * 2


@pytest.mark.parametrize('training', [True, False])
def test_padding_is_never_kept_nor_counted(case, build, training):
    model, (rows, cols) = build(), case.small
    with torch.no_grad():
        out = model.train(training).forward_sparse(images(), valid_shapes=SHAPES)
    for decision in out.decisions:
        grid = decision.keep_mask[1].view(decision.hw)
        assert grid[rows:].sum() == 0 and grid[:, cols:].sum() == 0
        assert decision.valid_mask.sum(1).tolist() == [grid.numel(), rows * cols]
        if not training:
            assert grid.sum() == int(rows * cols * decision.keep_ratio)


@pytest.mark.parametrize('execution', ['masked', 'gathered'])
def test_ratio_one_is_the_dense_model_in_a_padded_batch_too(build, execution):
    model, x = build(keep_ratios=ONES), images()
    with torch.no_grad():
        dense = model.eval()(x)
        padded = model.train().forward_sparse(x, execution=execution, valid_shapes=SHAPES)
    assert_same(padded.feats, dense)
    assert not (padded.decisions[0].keep_mask.bool() & ~padded.decisions[0].valid_mask).any()


def test_threshold_policy_gives_each_image_of_a_batch_what_it_gets_alone(build):
    model, x = build().eval(), images(4)
    with torch.no_grad():
        median = model.forward_sparse(x).decisions[0].scores.exp().median().item()
        policy = ThresholdPolicy(median)
        out = model.forward_sparse(x, policy=policy)
        alone = [model.forward_sparse(one[None], policy=policy) for one in x]
    assert len(set(out.decisions[0].keep_mask.sum(1).tolist())) > 1
    for level, feat in enumerate(out.feats):
        assert_same([feat], [torch.cat([single.feats[level] for single in alone])])


@pytest.mark.parametrize('shapes', [None, SHAPES], ids=['whole', 'padded'])
@pytest.mark.parametrize('ratios', [(0.7, 0.5, 0.3), (1.0, 0.5, 0.3)], ids=str)
def test_checkpointing_changes_nothing(build, ratios, shapes):
    grads = []
    for with_cp in (False, True):
        model = build(with_cp=with_cp, keep_ratios=ratios).train()
        torch.manual_seed(1)
        loss_of(model.forward_sparse(images().requires_grad_(), valid_shapes=shapes)).backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize('level', range(3))
def test_frozen_stages_do_not_train(case, build, level):
    frozen_stages, frozen = list(case.frozen.items())[level]
    model = build(frozen_stages=frozen_stages)
    tables = ('cls_token', 'pos_embed') if case.make is DynamicViT else ()
    expected = (*tables, *(f'{name}.' for name in frozen))
    for _ in range(2):
        stopped = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert stopped == {n for n, _ in model.named_parameters() if n.startswith(expected)}
        assert model.train() is model
    running = {n for n, module in model.named_modules() if not module.training}
    assert set(frozen) <= running
    assert not {f'stages.{i}' for i in range(frozen_stages, 4)} & running
    assert not {f'blocks.{i}' for i in range(frozen_stages, 8)} & running
    loss_of(model.forward_sparse(images().requires_grad_())).backward()
    assert all((p.grad is None) == (n in stopped) for n, p in model.named_parameters())


def test_stock_forward_in_training_warns_once_and_names_the_adapter(build):
    model = build().train()
    with pytest.warns(UserWarning, match=r'mmdyn\.DynamicEncoderDecoder'):
        model(images())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model(images())
        model.eval()(images())


def test_decisions_are_values_not_state(build):
    model = build().eval()
    before = set(vars(model))
    with torch.no_grad():
        out = model.forward_sparse(images())
    assert set(vars(model)) == before
    assert all(isinstance(d, Decision) for d in out.decisions)


@STAGED
def test_new_parameters_go_by_their_two_names(build):
    model = build()
    new = [n for n, _ in model.named_parameters() if 'predictors.' in n or 'fast_path' in n]
    assert {n.split('.')[0] for n in new} == {'predictors', 'stages'}
    first = model.sparse_blocks[0]
    with_fast = {int(re.search(r'(\d+)\.fast_path', n)[1]) for n in new if 'fast_path' in n}
    assert with_fast == set(range(first, 5))


@pytest.mark.parametrize('depth', [4, 9, 10, 27])
@pytest.mark.parametrize('make', [DynamicSwin, DynamicConvNeXt])
def test_default_predictor_positions(make, depth):
    depths, deep = (1, 1, depth, 1), (2, 4, 6) if make is DynamicSwin else (3, 6, 9)
    size = dict(embed_dims=4, num_heads=(1, 1, 1, 1), depths=depths)
    if make is DynamicConvNeXt:
        size = dict(arch=dict(depths=depths, channels=(4, 4, 4, 4)))
    assert make(**size).sparse_blocks == ((1, 2, 3) if depth <= 9 else deep)


@STAGED
@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (dict(keep_ratios=(0.7, 0.5)), ValueError, '2 entries for 3 predictors'),
        (dict(keep_ratios=(0.7, 0.5, 0.0)), ValueError, r'0\.0'),
        (dict(keep_ratios=(1.1, 0.5, 0.3)), ValueError, r'1\.1'),
        (dict(keep_ratios=(0.3, 0.5, 0.7)), ValueError, 'must not rise'),
        (dict(keep_ratios=(float('nan'), 0.5, 0.7)), ValueError, 'nan'),
        (dict(keep_ratios=0.7), TypeError, r'0\.7'),
        (dict(keep_ratios=('a', 'b', 'c')), TypeError, "'a'"),
        (dict(sparse_blocks=(1, 2, 5)), ValueError, r'0\.\.4'),
        (dict(sparse_blocks=(1, 1, 3)), ValueError, r'\(1, 1, 3\)'),
        (dict(sparse_blocks=()), ValueError, 'empty'),
        (dict(sparse_blocks=(1.0, 2, 3)), TypeError, r'1\.0'),
        (dict(sparse_stage=4), ValueError, r'sparse_stage=4 must be in 0\.\.3'),
        (dict(sparse_stage=0), ValueError, 'choose another sparse_stage'),
        (dict(out_indices=(0, 7)), ValueError, 'out_indices=7'),
        (dict(frozen_stages=5), ValueError, 'frozen_stages=5'),
        (dict(policy='topk'), TypeError, 'topk'),
        (dict(policy=TopKPolicy), TypeError, r'TopKPolicy\(\)'),
    ],
)
def test_wrong_settings_are_named_at_construction(build, kwargs, error, message):
    with pytest.raises(error, match=message):
        build(**kwargs)


def test_the_evaluation_policy_may_come_as_a_config(build):
    model = build(policy=dict(type='mmdyn.ThresholdPolicy', threshold=0.25)).eval()
    assert isinstance(model.policy, ThresholdPolicy) and model.policy.threshold == 0.25


def test_wrong_inputs_are_named(build):
    model = build().eval()
    with pytest.raises(ValueError, match=r'\(0, 3, 64, 64\)'):
        model(torch.zeros(0, 3, 64, 64))
    with pytest.raises(ValueError, match="'dense'"):
        model.forward_sparse(images(), execution='dense')
    with pytest.raises(ValueError, match='valid_shapes'):
        model.forward_sparse(images(), valid_shapes=[(97, 131)])
    with pytest.raises(ValueError, match=r'predictors\.0 gave NaN'):
        model(torch.full((1, 3, 64, 64), float('nan')))


@pytest.mark.parametrize('execution', ['masked', 'gathered'])
@pytest.mark.parametrize('keep_ratios', [(0.7, 0.5, 0.3), ONES], ids=str)
def test_on_the_meta_device_shapes_and_counts_are_the_real_ones(build, execution, keep_ratios):
    model = build(keep_ratios=keep_ratios).eval()
    with torch.no_grad():
        real = model.forward_sparse(images(), execution=execution)
        meta = model.to('meta').forward_sparse(images().to('meta'), execution=execution)
    for one, other in zip(meta.feats, real.feats, strict=True):
        assert one.is_meta and one.shape == other.shape
    for one, other in zip(meta.decisions, real.decisions, strict=True):
        assert one.keep_idx.shape == other.keep_idx.shape
        assert one.drop_idx.shape == other.drop_idx.shape
