"""Learning rates, ratios and policies during training."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import LinearLR, build_optim_wrapper
from torch import nn

from mmdyn.engine.hooks import (
    FitFastPathsHook,
    HoldPretrainedHook,
    KeepRatioHook,
    TrainingPolicyHook,
)
from mmdyn.models import DynamicSwin
from mmdyn.registry import HOOKS
from mmdyn.sparsity import GumbelPolicy, ThresholdPolicy, TopKPolicy

TOP_K = dict(type='mmdyn.TopKPolicy')
CLOSING = dict(begin=3, policy=TOP_K)


class Model(nn.Module):
    """A backbone and a layer after it."""

    def __init__(self):
        super().__init__()
        self.backbone = DynamicSwin(
            embed_dims=8,
            depths=(1, 1, 4, 1),
            num_heads=(1, 1, 1, 1),
            window_size=2,
            drop_path_rate=0.0,
        )
        self.head = nn.Linear(64, 2)


def optim_wrapper(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor='mmdyn.FinetuneOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.01),
            paramwise_cfg=paramwise,
        ),
    )


def groups(wrapper, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(group['params'][0])]: group for group in wrapper.optimizer.param_groups}


def runner_of(model, **paramwise):
    """A runner before its first iteration; ``told`` collects its log lines."""
    told = []
    return SimpleNamespace(
        model=model,
        iter=0,
        max_iters=100,
        optim_wrapper=optim_wrapper(model, **paramwise),
        told=told,
        logger=SimpleNamespace(warning=told.append, info=told.append),
    )


def test_each_part_has_its_rate_and_no_norm_decays():
    model = Model()
    factors = dict(pretrained=0.01, fast_path=3.0)
    custom = {'norm': dict(decay_mult=0.0), 'head': dict(lr_mult=10.0)}
    found = groups(optim_wrapper(model, custom_keys=custom, part_lr_mult=factors), model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, group in found.items():
        rate = 0.1 if 'predictors' in name else 0.3 if 'fast_path' in name else 0.001
        rate *= 10 if 'head' in name else 1
        assert group['lr'] == pytest.approx(rate), name
        assert group['weight_decay'] == (0.0 if 'norm' in name else 0.01), name
    assert any('predictors' in n and 'norm' in n for n in found)


@pytest.mark.parametrize('factors', [dict(backbone=0.1), dict(pretrained=-1)])
def test_wrong_factors_are_refused(factors):
    with pytest.raises(ValueError, match='part_lr_mult'):
        optim_wrapper(Model(), part_lr_mult=factors)


def test_pretrained_parameters_stand_still_until_the_warm_up_ends():
    model = Model()
    runner = runner_of(model, part_lr_mult=dict(pretrained=0.5))
    schedule = LinearLR(runner.optim_wrapper, start_factor=0.5, by_epoch=False, end=3)
    hook = HOOKS.build(dict(type='mmdyn.HoldPretrainedHook', end=2))
    hook.before_train(runner)
    for iteration in range(4):
        runner.iter = iteration
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        hook.before_train_iter(runner, iteration)
        runner.optim_wrapper.step()
        hook.after_train_iter(runner, iteration)
        schedule.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        new = {name for name in before if 'predictors' in name or 'fast_path' in name}
        assert moved == (new if iteration < 2 else set(before))
    # The schedule continued meanwhile.
    assert groups(runner.optim_wrapper, model)['head.weight']['lr'] == pytest.approx(0.05)


def test_running_statistics_of_what_is_held_stand_still_too():
    model = Model()
    model.head = nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model.backbone.predictors[0].out_proj.append(nn.BatchNorm1d(4))
    new, held = model.backbone.predictors[0].out_proj[-1], model.head[1]
    runner = runner_of(model.train(), part_lr_mult=dict(pretrained=0.5))
    hook = HoldPretrainedHook(2)
    hook.before_train(runner)
    for iteration in range(4):
        model.train()  # like a runner at the start of an epoch or after validation
        runner.iter = iteration
        before = {name: value.clone() for name, value in held.state_dict().items()}
        tracked = new.num_batches_tracked.item()
        hook.before_train_iter(runner, iteration)
        model.head(torch.randn(8, 64)), new(torch.randn(8, 4))
        assert model.head[2].training
        hook.after_train_iter(runner, iteration)
        assert held.training and new.num_batches_tracked == tracked + 1
        moved = {name for name, value in held.state_dict().items() if not value.equal(before[name])}
        moves = set() if iteration < 2 else {'running_mean', 'running_var', 'num_batches_tracked'}
        assert moved == moves


def test_a_group_of_both_kinds_is_refused():
    with pytest.raises(ValueError, match='FinetuneOptimWrapperConstructor'):
        HoldPretrainedHook(2).before_train(runner_of(Model()))


def test_keep_ratios_fall_to_the_configs_and_validation_has_those():
    model = Model()
    runner = runner_of(model)
    hook = HOOKS.build(dict(type='mmdyn.KeepRatioHook', begin=10, end=20))
    hook.before_train(runner)
    # Exact at the end: a slightly lower ratio would keep one location less.
    falling = {0: (1, 1, 1), 10: (1, 1, 1), 15: (0.85, 0.75, 0.65), 20: None, 99: None}
    for runner.iter, expected in falling.items():
        hook.before_train_iter(runner, 0)
        if expected is None:
            assert model.backbone.keep_ratios == (0.7, 0.5, 0.3)
        else:
            assert model.backbone.keep_ratios == pytest.approx(expected)
    runner.iter = 12
    for leave in (hook.before_val, hook.after_train):
        hook.before_train_iter(runner, 0)
        leave(runner)
        assert model.backbone.keep_ratios == (0.7, 0.5, 0.3)


def policy_at(runner, hook, iteration):
    hook.before_train(runner)
    runner.iter = iteration
    hook.before_train_iter(runner, 0)
    return runner.model.backbone.training_policy


def test_a_phase_begins_on_time_and_the_default_holds_before_and_after():
    runner = runner_of(Model())
    hook = HOOKS.build(dict(type='mmdyn.TrainingPolicyHook', phases=[CLOSING]))
    for iteration, policy in ((0, GumbelPolicy), (2, GumbelPolicy), (3, TopKPolicy)):
        assert isinstance(policy_at(runner, hook, iteration), policy)
        hook.after_train(runner)
        assert isinstance(runner.model.backbone.training_policy, GumbelPolicy)
    # On resume, in the phase of that iteration.
    phases = [dict(begin=0, policy=dict(type='mmdyn.GumbelPolicy', tau=0.5)), CLOSING]
    assert policy_at(runner, TrainingPolicyHook(phases), 2).tau == 0.5
    assert isinstance(policy_at(runner, TrainingPolicyHook(phases), 50), TopKPolicy)


def test_training_forwards_follow_the_policy_and_evaluation_does_not():
    model = Model().train()
    backbone = model.backbone
    images = torch.randn(2, 3, 64, 64)
    policy_at(runner_of(model), TrainingPolicyHook([CLOSING]), 3)
    first, second = (backbone.forward_sparse(images).decisions for _ in range(2))
    # Exact and repeatable counts: no sampling.
    assert first[0].kept_fraction().tolist() == [11 / 16] * 2
    assert torch.equal(first[0].keep_mask, second[0].keep_mask)
    out = backbone.forward_sparse(images)
    sum(feat.square().mean() for feat in out.feats).backward()
    for predictor in backbone.predictors:
        last = predictor.out_proj[-1]
        assert last.weight.grad.abs().max() > 0
        # A bias shifts all scores together, so it must get no gradient.
        torch.testing.assert_close(last.bias.grad, torch.zeros(2), atol=1e-7, rtol=0)
    backbone.policy = ThresholdPolicy(0.0)
    evaluated = backbone.eval().forward_sparse(images).decisions
    assert evaluated[0].kept_fraction().tolist() == [1, 1]


LATE = [
    (HoldPretrainedHook(100), 'end=100'),
    (KeepRatioHook(100), 'end=100'),
    (TrainingPolicyHook([dict(CLOSING, begin=100)]), 'begin=100'),
]


@pytest.mark.parametrize('hook, setting', LATE)
def test_what_is_never_reached_is_told(hook, setting):
    runner = runner_of(Model(), part_lr_mult=dict(pretrained=0.1))
    hook.before_train(runner)
    assert len(runner.told) == 1 and f'{setting} is never reached in 100' in runner.told[0]


@pytest.mark.parametrize('hook', [FitFastPathsHook(), *(hook for hook, _ in LATE)])
def test_a_dense_model_is_refused(hook):
    with pytest.raises(TypeError, match=rf'{type(hook).__name__} needs a sparse backbone'):
        hook.before_train(SimpleNamespace(model=nn.Linear(2, 2)))


@pytest.mark.parametrize(
    'hook, arguments, error, message',
    [
        (FitFastPathsHook, dict(batches=0), ValueError, 'batches must be 1 or more, got 0'),
        (HoldPretrainedHook, dict(end=0), ValueError, 'end must be 1 or more, got 0'),
        (HoldPretrainedHook, dict(end=1.5), TypeError, 'end must be an integer, got 1.5'),
        (KeepRatioHook, dict(end=5, begin=5), ValueError, 'end must be 6 or more, got 5'),
        (KeepRatioHook, dict(end=5, begin=-1), ValueError, 'begin must be 0 or more, got -1'),
        (TrainingPolicyHook, dict(phases=[]), ValueError, 'no phases'),
        (TrainingPolicyHook, dict(phases=[dict(begin=3)]), TypeError, 'begin=ITERATION'),
        (TrainingPolicyHook, dict(phases=[dict(begin='3', policy=TOP_K)]), TypeError, "'3'"),
        (TrainingPolicyHook, dict(phases=[dict(begin=-1, policy=TOP_K)]), ValueError, '-1'),
        (TrainingPolicyHook, dict(phases=[CLOSING, CLOSING]), ValueError, r'\[3, 3\]'),
        (TrainingPolicyHook, dict(phases=[dict(begin=3, policy='TopK')]), TypeError, 'TopK'),
    ],
)
def test_wrong_arguments_are_refused(hook, arguments, error, message):
    with pytest.raises(error, match=message):
        hook(**arguments)


def test_fast_paths_are_fitted_at_the_start_alone_on_data_of_the_loader_that_trains():
    seeds, model = [], Model()

    def batches():
        while True:
            yield torch.randn(2, 3, 32, 32)

    def build_dataloader(cfg, seed):
        seeds.append((cfg, seed))
        return batches()

    runner = runner_of(model)
    runner.cfg, runner.seed = SimpleNamespace(train_dataloader=dict(batch_size=2)), 7
    runner.build_dataloader = build_dataloader
    model.data_preprocessor = lambda batch, training: dict(inputs=batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hook = FitFastPathsHook(batches=2)
    runner.iter = 5  # resumed
    hook.before_train(runner)
    assert not seeds and not runner.told
    runner.iter = 0
    hook.before_train(runner)
    assert seeds == [(dict(batch_size=2), 7)]
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all('fast_path.proj' in name for name in changed)
    assert 'block by block' in runner.told[0] and runner.told[0].count('%') == 3


def test_hooks_are_there_before_any_host_is():
    code = (
        "import sys, mmdyn.engine.data_check; print('mmseg' in sys.modules, 'mmdet' in sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'False']
