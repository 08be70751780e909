import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdyn.convolutions import products
from mmdyn.convolutions.precision import torch_computes
from mmdyn.convolutions.products import PackedLinear, PointwiseConv2d, is_pointwise, packed_product


@pytest.mark.parametrize('shape', [(7,), (0, 7), (2, 0, 7), (5, 7), (3, 2, 2000, 7)])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('packs', [True, False])
def test_a_packed_product_is_the_linear_layer(shape, bias, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr(products, 'can_pack', lambda: False)
    torch.manual_seed(0)
    linear = nn.Linear(7, 5, bias=bias).requires_grad_(False)
    x = torch.randn(shape)
    for made in (packed_product(linear.weight, linear.bias), PackedLinear(linear)):
        torch.testing.assert_close(made(x), linear(x))


def test_inputs_that_lie_scattered():
    linear = nn.Linear(7, 5).requires_grad_(False)
    product = packed_product(linear.weight, linear.bias)
    for x in (torch.randn(7, 6).T, torch.randn(3, 9)[:, 1:8], torch.randn(1, 7).expand(4, 7)):
        torch.testing.assert_close(product(x), linear(x))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_convolution_keeps_the_memory_format(layout):
    conv = nn.Conv2d(7, 5, 1).requires_grad_(False)
    x = torch.randn(2, 7, 6, 4).to(memory_format=layout)
    assert is_pointwise(conv)
    out = PointwiseConv2d(conv)(x)
    torch.testing.assert_close(out, conv(x))
    assert out.is_contiguous(memory_format=layout)
    strided = nn.Conv2d(7, 5, 1, stride=2)
    assert not is_pointwise(strided) and not is_pointwise(nn.Linear(7, 5))


def test_weights_are_shared_and_gradients_flow():
    linear = nn.Linear(7, 5)
    packed = PackedLinear(linear)
    assert packed.weight is linear.weight and packed.bias is linear.bias
    x = torch.randn(3, 7)
    packed(x).sum().backward()
    torch.testing.assert_close(linear.weight.grad, x.sum(0).expand(5, -1))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert packed(x).dtype == F.linear(x, linear.weight).dtype == torch.bfloat16


@pytest.mark.parametrize('dtype', [torch.float32, torch.qint8])
def test_a_product_applies_a_gelu(dtype):
    if not torch_computes(dtype):
        pytest.skip('this torch has no such products')
    torch.manual_seed(0)
    linear, x = nn.Linear(32, 48), torch.randn(2, 5, 32)
    fused = PackedLinear(linear, dtype)
    fused.gelu = True
    with torch.no_grad():
        expected = F.gelu(PackedLinear(linear, dtype)(x))
        torch.testing.assert_close(fused(x), expected)
    # With gradients the plain layer runs, followed by GELU.
    torch.testing.assert_close(fused(x), F.gelu(linear(x)))
