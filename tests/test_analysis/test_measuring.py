"""Interleaved timing, peak memory, and derived figures."""

import time

import pytest
import torch
from torch import nn

from mmdyn.analysis import peak_memory
from mmdyn.analysis.measuring import (
    Latency,
    Measurement,
    Spread,
    measure,
    measure_latency,
    speedup,
    threads,
)


def latency(*samples):
    return Latency(**vars(Spread.of(samples)), samples=samples, first=9.0)


def played(rounds=20, warmup=0, seed=0):
    """Calls of three contenders on two inputs, round by round."""
    calls = []
    contenders = {name: lambda item, name=name: calls.append((name, item)) for name in 'abc'}
    measure_latency(contenders, [10, 20], rounds=rounds, warmup=warmup, seed=seed)
    return [calls[i : i + 3] for i in range(0, len(calls), 3)]


def test_every_round_has_every_contender_once_on_one_input():
    warm, *rounds = played(warmup=1)
    assert [name for name, _ in warm] == ['a', 'b', 'c'] and len(rounds) == 20
    for number, calls in enumerate(rounds):
        assert sorted(name for name, _ in calls) == ['a', 'b', 'c']
        assert {item for _, item in calls} == {(10, 20)[number % 2]}


def test_order_changes_from_round_to_round_and_is_the_seeds():
    orders = [[tuple(name for name, _ in calls) for calls in played(seed=s)] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) > 3


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

    def run(_):
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    told = []
    calls = dict(rounds=1, warmup=2, on_call=lambda: told.append(None))
    measure_latency({'a': run}, [0], grad=grad, **calls)
    assert modes == [(not grad, grad)] * len(told) and len(told) == 3


def test_speedup_is_the_median_of_the_rounds_ratios():
    # In rounds with a slow machine both times double, and the ratio is unchanged.
    ours, reference = latency(10, 20, 10, 20, 10), latency(20, 40, 20, 40, 10)
    assert speedup(ours, reference) == Spread(2, 2, 2)
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4)
    with pytest.raises(ValueError, match='1 and 2'):
        speedup(latency(1), latency(1, 2))


@pytest.mark.parametrize(
    ('contenders', 'inputs', 'rounds'), [({}, [0], 1), (1, [], 1), (1, [0], 0)]
)
def test_nothing_to_time_is_refused(contenders, inputs, rounds):
    with pytest.raises(ValueError, match='nothing to time'):
        measure_latency(contenders and {'a': id}, inputs, rounds=rounds)


def test_figures_against_a_reference():
    dense = Measurement(latency(2, 4, 6), 4e9, 2**21)
    sparse = Measurement(latency(1, 2, 3), 1e9, 2**20)
    assert sparse.realised(dense) == Spread(0.5, 0.5, 0.5)
    figures = sparse.as_json(dense)
    assert figures['ms'] == dict(median=2, lower=1.5, upper=2.5)
    assert figures['speedup'] == dict(median=2, lower=2, upper=2)
    assert figures['realised']['median'] == 0.5 and figures['first_ms'] == 9
    assert (figures['gmacs'], figures['peak_mib'], figures['rounds']) == (1, 1, 3)
    assert set(figures) - set(sparse.as_json()) == {'speedup', 'realised'}


def test_measures_time_multiply_adds_and_memory_of_each():
    small, large = nn.Linear(8, 8), nn.Linear(8, 800)
    contenders, inputs = {'small': small, 'large': large}, [torch.zeros(10, 8), torch.zeros(20, 8)]
    found = measure(contenders, inputs, macs={'large': 5}, rounds=2, warmup=1)
    assert found['small'].macs == 15 * 8 * 8 and found['large'].macs == 5
    assert found['large'].peak_bytes == 10 * 800 * 4
    assert len(found['large'].latency.samples) == 2


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with threads(None):
        assert torch.get_num_threads() == before


def test_memory_is_what_is_held_at_once_and_not_what_was_there():
    x, kept = torch.zeros(256, 1024), []

    def run():
        first = x + 1
        second = first + 1
        del first
        return (second + 1).sum()

    # Two tensors of x's size at the peak, and a few bytes for the sum.
    alone = peak_memory(run)
    assert 2 * x.nbytes <= alone < 2.1 * x.nbytes
    peak_memory(lambda: kept.append(torch.empty(1_000_000)))
    assert peak_memory(run) == alone
