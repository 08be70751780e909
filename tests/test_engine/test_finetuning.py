"""Rates and ratios of a dense-to-sparse fine-tuning."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import LinearLR, build_optim_wrapper
from torch import nn

from mmdyn.engine.hooks import HoldPretrainedHook, KeepRatioHook
from mmdyn.models import DynamicSwin
from mmdyn.registry import HOOKS


class Model(nn.Module):
    """A backbone and something after it."""

    def __init__(self):
        super().__init__()
        self.backbone = DynamicSwin(
            embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 1, 1), window_size=2
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


def test_each_part_has_its_rate_and_no_norm_decays():
    model = Model()
    factors = dict(pretrained=0.01, fast_path=3.0)
    wrapper = optim_wrapper(model, custom_keys={'norm': dict(decay_mult=0.0)}, part_lr_mult=factors)
    found = groups(wrapper, model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, group in found.items():
        rate = 0.1 if 'predictors' in name else 0.3 if 'fast_path' in name else 0.001
        assert group['lr'] == pytest.approx(rate), name
        assert group['weight_decay'] == (0.0 if 'norm' in name else 0.01), name
    assert any('predictors' in n and 'norm' in n for n in found)


def test_custom_rates_and_factors_multiply():
    model = Model()
    wrapper = optim_wrapper(
        model, custom_keys={'head': dict(lr_mult=10.0)}, part_lr_mult=dict(pretrained=0.1)
    )
    found = groups(wrapper, model)
    assert found['head.weight']['lr'] == pytest.approx(0.1)
    assert found['backbone.norm3.weight']['lr'] == pytest.approx(0.01)


@pytest.mark.parametrize('factors', [dict(backbone=0.1), dict(pretrained=-1)])
def test_wrong_factors_are_refused(factors):
    with pytest.raises(ValueError, match='part_lr_mult'):
        optim_wrapper(Model(), part_lr_mult=factors)


def runner_of(model, **paramwise):
    return SimpleNamespace(
        model=model, iter=0, max_iters=100, optim_wrapper=optim_wrapper(model, **paramwise)
    )


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
    # The schedule went on underneath.
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
        model.train()  # as a runner does whenever an epoch begins, or a validation is over
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
    runner = runner_of(Model())
    with pytest.raises(ValueError, match='FinetuneOptimWrapperConstructor'):
        HoldPretrainedHook(2).before_train(runner)


def test_keep_ratios_fall_to_the_configs_and_validation_has_those():
    model = Model()
    runner = SimpleNamespace(model=model, iter=0, max_iters=2000)
    hook = HOOKS.build(dict(type='mmdyn.KeepRatioHook', begin=10, end=20))
    hook.before_train(runner)
    for iteration, expected in ((0, (1, 1, 1)), (10, (1, 1, 1)), (15, (0.85, 0.75, 0.65))):
        runner.iter = iteration
        hook.before_train_iter(runner, 0)
        assert model.backbone.keep_ratios == pytest.approx(expected)
    hook.before_val(runner)
    assert model.backbone.keep_ratios == (0.7, 0.5, 0.3)
    hook.before_train_iter(runner, 0)
    assert model.backbone.keep_ratios == pytest.approx((0.85, 0.75, 0.65))
    for iteration in (20, 1000):
        runner.iter = iteration
        hook.before_train_iter(runner, 0)
        # To the last bit: a ratio a hair lower would keep one location less.
        assert model.backbone.keep_ratios == (0.7, 0.5, 0.3)
    runner.iter = 12
    hook.before_train_iter(runner, 0)
    hook.after_train(runner)
    assert model.backbone.keep_ratios == (0.7, 0.5, 0.3)


@pytest.mark.parametrize('hook', [HoldPretrainedHook(100), KeepRatioHook(100)])
def test_an_end_past_the_trainings_is_told(hook):
    told = []
    runner = runner_of(Model(), part_lr_mult=dict(pretrained=0.1))
    runner.logger = SimpleNamespace(warning=told.append)
    hook.before_train(runner)
    assert len(told) == 1 and 'end=100 is never reached in 100' in told[0]


@pytest.mark.parametrize(
    'hook, arguments, error, message',
    [
        (HoldPretrainedHook, dict(end=0), ValueError, 'end must be 1 or more, got 0'),
        (HoldPretrainedHook, dict(end=1.5), TypeError, 'end must be an iteration number, got 1.5'),
        (KeepRatioHook, dict(end=5, begin=5), ValueError, 'end must be 6 or more, got 5'),
        (KeepRatioHook, dict(end=5, begin=-1), ValueError, 'begin must be 0 or more, got -1'),
    ],
)
def test_wrong_iterations_are_refused(hook, arguments, error, message):
    with pytest.raises(error, match=message):
        hook(**arguments)


@pytest.mark.parametrize('hook', [HoldPretrainedHook(2), KeepRatioHook(2)])
def test_a_dense_model_is_refused(hook):
    with pytest.raises(TypeError, match=rf'{type(hook).__name__} needs a sparse backbone'):
        hook.before_train(SimpleNamespace(model=nn.Linear(2, 2)))
