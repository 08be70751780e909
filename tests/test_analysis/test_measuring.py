"""Figures of contenders that are measured together."""

import pytest
import torch
from torch import nn

from mmdyn.analysis.latency import Latency, Spread
from mmdyn.analysis.measuring import Measurement, in_dtype, measure, realised, threads


def measurement(*samples, macs):
    median = sorted(samples)[len(samples) // 2]
    return Measurement(Latency(median, min(samples), max(samples), samples, 9.0), macs, 2**20)


def test_realised_is_the_speedup_over_the_saving():
    dense = measurement(10, 20, 30, macs=4_000_000_000)
    sparse = measurement(8, 16, 24, macs=2_000_000_000)
    assert realised(sparse, dense) == Spread(0.625, 0.625, 0.625)
    assert realised(dense, dense) == Spread(1, 1, 1)


def test_json_has_rounded_figures_and_a_reference_only_if_given():
    dense, sparse = measurement(2, 4, 6, macs=2 * 10**9), measurement(1, 2, 3, macs=10**9)
    figures = sparse.as_json(dense)
    assert figures['ms'] == dict(median=2, lower=1, upper=3)
    assert figures['speedup'] == dict(median=2, lower=2, upper=2)
    assert figures['realised']['median'] == 1
    assert (figures['gmacs'], figures['peak_mib'], figures['rounds']) == (1, 1, 3)
    assert figures['first_ms'] == 9
    assert set(figures) - set(sparse.as_json()) == {'speedup', 'realised'}


def test_measures_time_multiply_adds_and_memory_of_each():
    small, large = nn.Linear(8, 8), nn.Linear(8, 800)
    found = measure({'small': small, 'large': large}, [torch.zeros(10, 8)], rounds=2, warmup=1)
    assert found['small'].macs == 10 * 8 * 8
    assert found['large'].peak_bytes == 10 * 800 * 4
    assert len(found['large'].latency.samples) == 2


def test_counted_multiply_adds_are_taken_over():
    found = measure({'a': lambda x: x}, [torch.zeros(1)], macs={'a': 5}, rounds=1)
    assert found['a'].macs == 5


@pytest.mark.parametrize(('dtype', 'expected'), [('fp32', torch.float32), ('bf16', torch.bfloat16)])
def test_runs_in_the_dtype(dtype, expected):
    assert in_dtype(nn.Linear(2, 2), dtype)(torch.zeros(1, 2)).dtype is expected


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
