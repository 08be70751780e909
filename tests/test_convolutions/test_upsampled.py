import pytest
import torch
import torch.nn.functional as F

from mmdyn.convolutions.kernels import Kernel
from mmdyn.convolutions.upsampled import (
    conv_of_upsampled,
    shifted_interpolation,
    trace_tiles,
)
from mmdyn.sparsity.tiles import TileGrid


def plainly(x, weight, size, align_corners):
    x = F.interpolate(x, size=size, mode='bilinear', align_corners=align_corners)
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2).permute(0, 2, 3, 1)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('kernel', [1, 3, 5])
@pytest.mark.parametrize(
    ('hw', 'size'),
    [((4, 6), (8, 12)), ((5, 3), (9, 7)), ((1, 1), (3, 2)), ((4, 4), (4, 4)), ((6, 5), (3, 4))],
)
def test_equals_the_convolution_of_the_upsampled_map(hw, size, kernel, align_corners):
    torch.manual_seed(0)
    x = torch.randn(2, 7, *hw, requires_grad=True)
    weight = torch.randn(5, 7, kernel, kernel, requires_grad=True)
    ours = conv_of_upsampled(x, Kernel(weight), size, align_corners)
    expected = plainly(x, weight, size, align_corners)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    grads = [torch.autograd.grad(y.square().sum(), (x, weight)) for y in (ours, expected)]
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize('grad', [False, True])
def test_adds_to_what_is_given(grad):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 3, 5), torch.randn(6, 4, 3, 3)
    total = torch.randn(2, 10, 6, 6)
    expected = total + plainly(x, weight, (10, 6), False)
    with torch.set_grad_enabled(grad):
        out = conv_of_upsampled(x, Kernel(weight), (10, 6), out=total)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    assert (out.data_ptr() == total.data_ptr()) is not grad


def test_half_precision_and_channels_last():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last)
    weight = torch.randn(8, 8, 3, 3)
    expected = plainly(x, weight, (8, 8), False)
    torch.testing.assert_close(
        conv_of_upsampled(x, Kernel(weight), (8, 8)), expected, atol=1e-4, rtol=1e-4
    )
    half = conv_of_upsampled(x.bfloat16(), Kernel(weight.bfloat16()), (8, 8))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.5, rtol=0.05)


def test_made_in_inference_it_serves_a_training_too():
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3, requires_grad=True)
    with torch.inference_mode():
        conv_of_upsampled(x, Kernel(weight), (11, 13))
    conv_of_upsampled(x, Kernel(weight), (11, 13)).sum().backward()
    assert weight.grad is not None


def test_rows_are_zero_where_the_tap_looks_beyond_the_border():
    rows = shifted_interpolation(3, 6, 3, False, 6, torch.device('cpu'))
    assert rows.shape == (3, 6, 3)
    assert not rows[0, 0].any() and not rows[2, -1].any()
    torch.testing.assert_close(rows[1].sum(dim=1), torch.ones(6))


@pytest.mark.parametrize('cells', [(3, 4), (5, 7), (1, 1)])
def test_averaged_over_cells(cells):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 5, 3), torch.randn(6, 4, 3, 3)
    expected = plainly(x, weight, (9, 7), False).permute(0, 3, 1, 2)
    expected = F.adaptive_avg_pool2d(expected, cells).permute(0, 2, 3, 1)
    ours = conv_of_upsampled(x, Kernel(weight), (9, 7), cells=cells)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('tile', [1, 4, 8])
@pytest.mark.parametrize(('hw', 'size'), [((4, 6), (8, 12)), ((5, 3), (9, 7)), ((2, 2), (16, 13))])
def test_tiles_are_parts_of_the_whole(hw, size, tile, align_corners):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, *hw), torch.randn(6, 4, 3, 3)
    grid = TileGrid(size, tile)
    count = grid.shape[0] * grid.shape[1]
    chosen = torch.randperm(2 * count)[: max(1, count)].sort().values
    origin = trace_tiles(hw, grid, chosen, align_corners, taps=3)
    tiles = origin.convolve(origin.windows().take(x), Kernel(weight))
    windows = grid.windows(chosen)
    whole = windows.take(plainly(x, weight, size, align_corners).permute(0, 3, 1, 2))
    inside = windows.inside.unsqueeze(-1)
    torch.testing.assert_close(
        torch.where(inside, tiles, 0.0), whole.permute(0, 2, 3, 1), atol=1e-4, rtol=1e-4
    )


def test_tiles_interpolated_with_a_halo():
    x, grid = torch.randn(2, 4, 5, 3), TileGrid((9, 7), 4)
    chosen = torch.tensor([0, 3, 5, 6, 11])
    origin = trace_tiles((5, 3), grid, chosen, halo=2)
    tiles = origin.interpolate(origin.windows().take(x))
    whole = F.interpolate(x, size=(9, 7), mode='bilinear')
    torch.testing.assert_close(tiles, grid.windows(chosen, 2).take(whole))


def test_a_tile_needs_little_of_a_small_map():
    origin = trace_tiles((64, 64), TileGrid((128, 128), 16), torch.tensor([0, 9, 63]), taps=3)
    assert origin.windows().place.shape == (3, 10, 10)
