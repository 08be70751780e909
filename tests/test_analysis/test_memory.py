"""Peak memory of a call on the CPU."""

import torch
from torch import nn

from mmdyn.analysis import peak_memory


def test_counts_what_is_held_at_once_and_not_what_was_there():
    x = torch.zeros(256, 1024)

    def run():
        first = x + 1
        second = first + 1
        del first
        return (second + 1).sum()

    # Two tensors of x's size at any moment, and a few bytes for the sum.
    assert 2 * x.nbytes <= peak_memory(run) < 2.1 * x.nbytes


def test_a_wider_layer_takes_more():
    x = torch.zeros(64, 64)
    peaks = []
    for width in (64, 640):
        layers = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, 64))
        with torch.inference_mode():
            peaks.append(peak_memory(lambda layers=layers: layers(x)))
    assert 8 * peaks[0] < peaks[1] <= 12 * peaks[0]


def test_training_holds_activations_and_gradients():
    layers = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4)))
    x = torch.zeros(256, 128)

    def step():
        layers(x).sum().backward()
        layers.zero_grad(set_to_none=True)

    with torch.inference_mode():
        forward = peak_memory(lambda: layers(x))
    assert peak_memory(step) > 2 * forward


def test_what_earlier_calls_left_alive_does_not_count():
    kept = []
    alone = peak_memory(lambda: torch.empty(1000))
    peak_memory(lambda: kept.append(torch.empty(1_000_000)))
    assert peak_memory(lambda: torch.empty(1000)) == alone
