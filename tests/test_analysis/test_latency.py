"""Interleaved timing, and the figures made of it."""

import time

import pytest
import torch

from mmdyn.analysis.latency import Latency, Spread, measure_latency, speedup


def latency(*samples):
    return Latency(0.0, 0.0, 0.0, samples, samples[0])


def record(calls, name):
    return lambda item: calls.append((name, item))


def test_every_round_has_every_contender_once_on_one_input():
    calls = []
    contenders = {name: record(calls, name) for name in 'abc'}
    measure_latency(contenders, [10, 20], rounds=20, warmup=1)
    warm, *rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert warm == [('a', 10), ('b', 10), ('c', 10)]
    assert len(rounds) == 20
    for number, played in enumerate(rounds):
        assert sorted(name for name, _ in played) == ['a', 'b', 'c']
        assert {item for _, item in played} == {(10, 20)[number % 2]}


def test_order_changes_from_round_to_round_and_is_the_seeds():
    orders = []
    for seed in (0, 0, 1):
        calls = []
        contenders = {name: record(calls, name) for name in 'abc'}
        measure_latency(contenders, [0], rounds=20, warmup=0, seed=seed)
        orders.append(tuple(name for name, _ in calls))
    assert orders[0] == orders[1] != orders[2]
    assert len({orders[0][i : i + 3] for i in range(0, 60, 3)}) > 3


def test_keeps_every_sample_and_the_first_call():
    calls = []

    def slow_at_first(_):
        time.sleep(0.001 if calls else 0.03)
        calls.append(None)

    times = measure_latency({'a': slow_at_first, 'b': lambda _: None}, [0], rounds=5, warmup=1)
    found = times['a']
    assert len(found.samples) == 5
    assert found.first >= 30 > max(found.samples)
    assert found.lower <= found.median <= found.upper
    assert times['b'].median < found.median


def test_goes_on_until_the_time_is_up():
    times = measure_latency({'a': lambda _: time.sleep(0.002)}, [0], rounds=2, seconds=0.05)
    assert len(times['a'].samples) > 5


@pytest.mark.parametrize('grad', [False, True])
def test_records_gradients_only_if_asked(grad):
    modes = []
    run = {
        'a': lambda _: modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
    }
    measure_latency(run, [0], rounds=1, warmup=0, grad=grad)
    assert modes == [(not grad, grad)]


def test_on_call_is_told_of_every_call():
    told = []
    run = {'a': lambda _: None, 'b': lambda _: None}
    measure_latency(run, [0], rounds=3, warmup=2, on_call=lambda: told.append(None))
    assert len(told) == 10


def test_speedup_is_the_median_of_the_rounds_ratios():
    # Rounds in which the machine was slow: both times double, their ratio stays.
    ours, reference = latency(10, 20, 10, 20, 10), latency(20, 40, 20, 40, 10)
    assert speedup(ours, reference) == Spread(2, 2, 2)
    assert speedup(ours, ours) == Spread(1, 1, 1)
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4)


def test_speedup_wants_the_same_rounds():
    with pytest.raises(ValueError, match='1 and 2'):
        speedup(latency(1), latency(1, 2))


@pytest.mark.parametrize(
    ('contenders', 'inputs', 'rounds', 'said'),
    [({}, [0], 1, '0 contenders'), ({'a': id}, [], 1, '0 inputs'), ({'a': id}, [0], 0, 'rounds')],
)
def test_nothing_to_time_is_refused(contenders, inputs, rounds, said):
    with pytest.raises(ValueError, match=said):
        measure_latency(contenders, inputs, rounds=rounds)
