import pytest
import torch
import torch.nn.functional as F

from mmdyn.convolutions import winograd
from mmdyn.convolutions.winograd import winograd_conv2d, winograd_products

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize('size', [(3, 3), (4, 8), (13, 9), (30, 45)])
@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('batch', [1, 2, 3])
@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('strip', [2**23, 2**12, 1])
def test_equals_the_direct_convolution(size, padding, batch, layout, strip, monkeypatch):
    monkeypatch.setattr(winograd, 'STRIP', strip)
    torch.manual_seed(0)
    x = torch.randn(batch, 7, *size).to(memory_format=layout)
    weight, bias = torch.randn(5, 7, 3, 3), torch.randn(5)
    with torch.no_grad():
        products = winograd_products(weight)
        plain = winograd_conv2d(x, products, 5, padding)
        out = winograd_conv2d(x, products, 5, padding, bias)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5 * expected.abs().max())
    torch.testing.assert_close(out, plain + bias[:, None, None])
    assert out.permute(0, 2, 3, 1).stride()[-1] == 1


def test_many_channels_in_float32_are_close():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 32, 32), torch.randn(64, 256, 3, 3) / 48
    with torch.no_grad():
        out = winograd_conv2d(x, winograd_products(weight), 64, 1)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert (out - expected).abs().max() < 2e-5 * expected.abs().max()
