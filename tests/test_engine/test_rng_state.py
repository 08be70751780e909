"""A resumed training is bit-exact."""

import os
import random
import re
import socket

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmdyn.cli import process_group
from mmdyn.engine.distributed import init_gloo, use_cpu_wrapper
from mmdyn.engine.hooks.rng_state import get_rng_state, set_rng_state
from tests.test_engine.toy import toy_config, train


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Skip slow parts of mmengine."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda _: ''))  # formats the config
    monkeypatch.setattr('time.sleep', lambda _: None)  # waits when a loader restarts


def draw():
    return [random.gauss(0, 1), np.random.randn(), torch.randn(()).item()]


def test_state_brings_back_the_same_numbers_after_a_safe_load(tmp_path):
    draw()  # so that Python and numpy have a spare Gaussian number
    torch.save(get_rng_state(), tmp_path / 'state.pth')
    first = [draw() for _ in range(3)]
    set_rng_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert [draw() for _ in range(3)] == first


@pytest.mark.parametrize(
    ('by_epoch', 'sampler', 'length', 'checkpoint', 'resumed_at', 'seed'),
    [
        pytest.param(False, 'InfiniteSampler', 7, 'iter_4.pth', 4, 0, id='iter'),
        pytest.param(False, 'InfiniteSampler', 5, 'iter_4.pth', 4, None, id='iter-no-seed'),
        # The loader ends after four iterations: once at the resume, once after it.
        pytest.param(False, 'DefaultSampler', 6, 'iter_4.pth', 4, 0, id='iter-loader-ends-here'),
        pytest.param(False, 'DefaultSampler', 6, 'iter_2.pth', 2, 0, id='iter-loader-ends'),
        pytest.param(False, 'InfiniteSampler', 5, 'best_acc_iter_2.pth', 2, 0, id='iter-best'),
        pytest.param(True, 'DefaultSampler', 2, 'epoch_1.pth', 4, 0, id='epoch'),
        pytest.param(True, 'DefaultSampler', 2, 'epoch_1.pth', 4, None, id='epoch-no-seed'),
    ],
)
def test_losses_after_a_resume_are_bit_equal(
    tmp_path, by_epoch, sampler, length, checkpoint, resumed_at, seed
):
    settings = dict(by_epoch=by_epoch, length=length, sampler=sampler, randomness=dict(seed=seed))
    # Both runs validate; the first one does so between the checkpoint and the next iteration.
    _, whole = train(toy_config(tmp_path, **settings), f'whole-{tmp_path}')
    draw()
    # A best checkpoint has no optimizer state; one of the same iteration is next to it.
    if checkpoint.startswith('best'):
        best = torch.load(tmp_path / checkpoint, weights_only=False)
        last = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
        torch.save({**last, 'rng_state': best['rng_state']}, tmp_path / checkpoint)
    cfg = toy_config(tmp_path, **settings, resume=True, load_from=str(tmp_path / checkpoint))
    _, rest = train(cfg, f'rest-{tmp_path}')
    assert min(rest) == resumed_at
    assert rest == {step: loss for step, loss in whole.items() if step >= resumed_at}


def test_without_the_hook_the_losses_differ(tmp_path):
    """Verifies that the test above can fail."""
    settings = dict(by_epoch=False, length=6, sampler='InfiniteSampler', randomness=dict(seed=0))
    settings['custom_hooks'] = [dict(type='LossRecorder')]
    _, whole = train(toy_config(tmp_path, **settings), f'whole-{tmp_path}')
    cfg = toy_config(tmp_path, **settings, resume=True, load_from=str(tmp_path / 'iter_4.pth'))
    _, rest = train(cfg, f'rest-{tmp_path}')
    assert rest != {step: loss for step, loss in whole.items() if step >= 4}


def test_validation_leaves_no_trace(tmp_path):
    settings = dict(by_epoch=False, length=6, sampler='InfiniteSampler', randomness=dict(seed=0))
    _, with_val = train(toy_config(tmp_path / 'a', **settings), f'a-{tmp_path}')
    settings.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg = toy_config(tmp_path / 'b', **settings)
    cfg.default_hooks.checkpoint.save_best = None
    _, without = train(cfg, f'b-{tmp_path}')
    assert with_val == without


def train_as_rank(rank, folder, port):
    """One of two processes: trains, resumes in the middle, writes the losses of both runs."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    settings = dict(by_epoch=False, length=4, sampler='InfiniteSampler', launcher='pytorch')
    settings['randomness'] = dict(seed=0, diff_rank_seed=True)
    with process_group():
        init_gloo('pytorch')
        runs = []
        for changes in ({}, dict(resume=True, load_from=f'{folder}/iter_2.pth')):
            cfg = toy_config(folder, **settings, **changes)
            use_cpu_wrapper(cfg)
            runs.append(train(cfg, f'run-{len(runs)}')[1])
        torch.save(runs, f'{folder}/losses_{rank}.pth')


def test_every_rank_gets_its_own_state_back(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_as_rank, (tmp_path, port), nprocs=2)
    states = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['rng_state']['ranks']
    assert not torch.equal(states[0]['torch'], states[1]['torch'])
    whole = []
    for rank in (0, 1):
        losses, rest = torch.load(tmp_path / f'losses_{rank}.pth', weights_only=True)
        assert rest == {step: loss for step, loss in losses.items() if step >= 2}
        whole.append(losses)
    assert whole[0] != whole[1]


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda checkpoint: checkpoint['rng_state']['ranks'].append(None), r'2 process.* 1 resume'),
        (lambda checkpoint: checkpoint.pop('rng_state'), 'mmdyn.RngStateHook'),
    ],
)
def test_a_state_that_can_not_be_restored_is_told(tmp_path, monkeypatch, edit, message):
    settings = dict(by_epoch=False, length=2, sampler='InfiniteSampler')
    train(toy_config(tmp_path, **settings), f'first-{tmp_path}')
    checkpoint = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    edit(checkpoint)
    torch.save(checkpoint, tmp_path / 'edited.pth')
    settings.update(length=3, resume=True, load_from=str(tmp_path / 'edited.pth'))
    said = []
    monkeypatch.setattr(MMLogger, 'warning', lambda _, message, *a, **k: said.append(message))
    train(toy_config(tmp_path, **settings), f'second-{tmp_path}')
    (warning,) = [one for one in said if 'RNG state' in one]
    assert re.search(message, warning)


def test_load_from_does_not_restore(tmp_path):
    """Fine-tuning from a checkpoint is a new training."""
    settings = dict(by_epoch=False, length=2, sampler='InfiniteSampler', randomness=dict(seed=0))
    train(toy_config(tmp_path, **settings), f'first-{tmp_path}')
    settings['randomness'] = dict(seed=1)
    weights = str(tmp_path / 'iter_2.pth')
    runner, _ = train(toy_config(tmp_path, **settings, load_from=weights), f'tuned-{tmp_path}')
    assert runner.train_dataloader.sampler.seed == 1
