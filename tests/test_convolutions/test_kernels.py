import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdyn.convolutions import kernels
from mmdyn.convolutions.kernels import (
    Choices,
    FastConv2d,
    FastKernel,
    Kernel,
    can_be_fast,
    convolve_valid,
    kernel_of,
)
from tests.torch_line import needs_whole_graphs


def made(padding=1):
    torch.manual_seed(0)
    return nn.Conv2d(6, 4, 3, padding=padding).requires_grad_(False)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('padding', [0, 1])
def test_both_algorithms_are_the_convolution_in_its_memory_format(layout, padding):
    conv = made(padding)
    fast = FastConv2d(conv, Choices())
    x = torch.randn(2, 6, 11, 9).to(memory_format=layout)
    expected = conv(x)
    for out in (fast(x), fast.kernel.winograd(x, padding, conv.bias)):
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        assert out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('faster', ['winograd', 'direct'])
def test_the_faster_one_is_taken(faster, monkeypatch):
    ran = []

    def winograd(*_):
        ran.append('winograd')

    monkeypatch.setattr(kernels, '_seconds', lambda run, *_: run.__name__ != faster)
    monkeypatch.setattr(FastKernel, 'winograd', winograd)
    choices, conv = Choices(), made()
    with torch.no_grad():
        for side in (8, 8, 10, 40):
            FastConv2d(conv, choices)(torch.randn(1, 6, side, side))
    assert len(choices) == 3  # 4, 9 and 100 cells
    assert set(choices.values()) == {faster == 'winograd'} and len(ran) == 4 * choices.popitem()[1]


def test_parts_of_a_kernel_and_rows_of_it():
    conv = made()
    whole, part = FastKernel(conv, Choices()), FastKernel(conv, Choices(), slice(2, 5))
    x = torch.randn(2, 3, 7, 5)
    expected = F.conv2d(x, conv.weight[:, 2:5], padding=1)
    torch.testing.assert_close(part.convolve(x, 1), expected, rtol=1e-4, atol=1e-4)
    pixels = torch.randn(2, 4, 6)
    for row in range(3):
        expected = Kernel(conv.weight).row_products(pixels, row)
        torch.testing.assert_close(whole.row_products(pixels, row), expected)
        taps = torch.einsum('nlc,dck->nlkd', pixels, conv.weight[:, :, row])
        torch.testing.assert_close(expected, taps.flatten(2))


def test_without_its_padding():
    conv = made()
    x = torch.randn(1, 6, 8, 8)
    expected = F.conv2d(x, conv.weight, conv.bias)
    for layer in (conv, FastConv2d(conv, Choices())):
        torch.testing.assert_close(convolve_valid(layer, x), expected, rtol=1e-4, atol=1e-4)
    assert type(kernel_of(conv)) is Kernel


@pytest.mark.parametrize(
    'other',
    [
        dict(stride=2),
        dict(dilation=2),
        dict(groups=2),
        dict(padding=2),
        dict(padding='same'),
        dict(padding=1, padding_mode='reflect'),
        dict(kernel_size=(3, 1)),
    ],
)
def test_other_convolutions_are_left(other):
    assert not can_be_fast(nn.Conv2d(**dict(in_channels=6, out_channels=4, kernel_size=3) | other))
    assert can_be_fast(nn.Conv2d(6, 4, 3)) and not can_be_fast(nn.Linear(3, 3))
    assert not can_be_fast(nn.utils.spectral_norm(nn.Conv2d(6, 4, 3)))
    assert not can_be_fast(nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 4, 3)))


@needs_whole_graphs
def test_a_graph_of_any_size_has_the_plain_convolution():
    fast, x = FastConv2d(made(), Choices()), torch.randn(1, 6, 9, 11)
    height, width = (torch.export.Dim(name, min=4, max=64) for name in ('height', 'width'))
    program = torch.export.export(fast, (x,), dynamic_shapes=({2: height, 3: width},))
    larger = torch.randn(1, 6, 20, 14)
    torch.testing.assert_close(program.module()(larger), fast(larger), rtol=1e-4, atol=1e-4)
