"""Policies that change in the course of a training."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger

from mmdyn.engine.hooks import TrainingPolicyHook
from mmdyn.models import DynamicSwin
from mmdyn.registry import HOOKS
from mmdyn.sparsity import GumbelPolicy, ThresholdPolicy, TopKPolicy

CLOSING = dict(begin=3, policy=dict(type='mmdyn.TopKPolicy'))


@pytest.fixture
def runner():
    backbone = DynamicSwin(
        embed_dims=8,
        depths=(1, 1, 4, 1),
        num_heads=(1, 1, 1, 1),
        window_size=2,
        drop_path_rate=0.0,
    ).train()
    return SimpleNamespace(
        model=SimpleNamespace(backbone=backbone),
        iter=0,
        max_iters=200,
        logger=MMLogger.get_instance('training_policy'),
    )


def policy_at(runner, hook, iteration):
    hook.before_train(runner)
    runner.iter = iteration
    hook.before_train_iter(runner, 0)
    return runner.model.backbone.training_policy


def test_a_phase_begins_on_time_and_the_default_holds_before(runner):
    hook = HOOKS.build(dict(type='mmdyn.TrainingPolicyHook', phases=[CLOSING]))
    for iteration in (0, 2):
        assert isinstance(policy_at(runner, hook, iteration), GumbelPolicy)
    for iteration in (3, 4, 100):
        assert isinstance(policy_at(runner, hook, iteration), TopKPolicy)


def test_a_resumed_training_is_in_the_phase_it_would_be_in(runner):
    phases = [dict(begin=0, policy=dict(type='mmdyn.GumbelPolicy', tau=0.5)), CLOSING]
    assert policy_at(runner, TrainingPolicyHook(phases), 2).tau == 0.5
    assert isinstance(policy_at(runner, TrainingPolicyHook(phases), 50), TopKPolicy)


def test_training_forwards_follow_it_and_evaluation_does_not(runner):
    backbone = runner.model.backbone
    images = torch.randn(2, 3, 64, 64)
    policy_at(runner, TrainingPolicyHook([CLOSING]), 3)
    first, second = (backbone.forward_sparse(images).decisions for _ in range(2))
    # Exact counts, the same ones every time: no sampling.
    assert first[0].kept_fraction().tolist() == [11 / 16] * 2
    assert torch.equal(first[0].keep_mask, second[0].keep_mask)
    backbone.policy = ThresholdPolicy(0.0)
    evaluated = backbone.eval().forward_sparse(images).decisions
    assert evaluated[0].kept_fraction().tolist() == [1, 1]


def test_predictors_learn_from_top_k_decisions_whatever_all_scores_share(runner):
    backbone = runner.model.backbone
    policy_at(runner, TrainingPolicyHook([CLOSING]), 3)
    out = backbone.forward_sparse(torch.randn(2, 3, 64, 64))
    sum(feat.square().mean() for feat in out.feats).backward()
    for predictor in backbone.predictors:
        last = predictor.out_proj[-1]
        assert last.weight.grad.abs().max() > 0
        # The bias moves all scores together: no gradient may push it.
        torch.testing.assert_close(last.bias.grad, torch.zeros(2), atol=1e-7, rtol=0)


def test_the_default_is_back_after_the_training(runner):
    hook = TrainingPolicyHook([CLOSING])
    policy_at(runner, hook, 3)
    hook.after_train(runner)
    assert isinstance(runner.model.backbone.training_policy, GumbelPolicy)


def test_a_phase_that_is_never_reached_is_told(runner, monkeypatch):
    told = []
    monkeypatch.setattr(runner.logger, 'warning', told.append)
    TrainingPolicyHook([dict(CLOSING, begin=200)]).before_train(runner)
    TrainingPolicyHook([CLOSING]).before_train(runner)
    assert len(told) == 1 and 'begin=200 is never reached in 200' in told[0]


@pytest.mark.parametrize(
    'phases, error, message',
    [
        ([], ValueError, 'no phases'),
        ([dict(begin=3)], TypeError, 'begin=ITERATION'),
        ([dict(begin='3', policy=dict(type='mmdyn.TopKPolicy'))], TypeError, "'3'"),
        ([dict(begin=-1, policy=dict(type='mmdyn.TopKPolicy'))], ValueError, '-1'),
        ([CLOSING, CLOSING], ValueError, r'\[3, 3\]'),
        ([dict(begin=3, policy='TopK')], TypeError, 'TopK'),
    ],
)
def test_bad_phases_are_refused(phases, error, message):
    with pytest.raises(error, match=message):
        TrainingPolicyHook(phases)


def test_a_dense_model_is_refused(runner):
    runner.model.backbone = torch.nn.Identity()
    with pytest.raises(TypeError, match='Identity'):
        TrainingPolicyHook([CLOSING]).before_train(runner)


def test_hooks_are_there_before_any_host_is(tmp_path):
    code = (
        "import sys, mmdyn.engine.data_check; print('mmseg' in sys.modules, 'mmdet' in sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'False']
