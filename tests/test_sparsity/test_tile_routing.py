"""A 3x3 convolution on chosen tiles, a 1x1 one elsewhere."""

import pytest
import torch
import torch.nn.functional as F

from mmdyn.sparsity import Decision
from mmdyn.sparsity.tile_routing import Tiles, route_tiles
from mmdyn.sparsity.tiles import TileGrid

SIZES = [(8, 8), (9, 14), (3, 5), (1, 1)]


def layers():
    torch.manual_seed(0)
    dense, fast = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 1, 1)
    return lambda x: F.conv2d(x, dense), lambda x: F.conv2d(x, fast)


def tiles_of(hw, keep, execution):
    grid = TileGrid(hw, 4)
    keep = keep.view(-1, grid.shape[0] * grid.shape[1])
    return Tiles(grid, Decision(keep, keep, 0.5, grid.shape), execution)


def random_keep(hw, batch_size):
    rows, columns = TileGrid(hw, 4).shape
    return torch.rand(batch_size, rows * columns).round()


@pytest.mark.parametrize('hw', SIZES)
@pytest.mark.parametrize('batch_size', [1, 2, 3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_masked_and_gathered_are_the_same_function(hw, batch_size, layout):
    slow, fast = layers()
    x = torch.randn(batch_size, 4, *hw).contiguous(memory_format=layout)
    keep = random_keep(hw, batch_size)
    masked, gathered = (
        route_tiles(x, tiles_of(hw, keep, execution), slow, fast)
        for execution in ('masked', 'gathered')
    )
    torch.testing.assert_close(gathered, masked, atol=1e-5, rtol=1e-5)
    everywhere = TileGrid(hw, 4).spread(keep).bool().unsqueeze(1).expand_as(masked)
    dense = slow(F.pad(x, (1, 1, 1, 1)))
    torch.testing.assert_close(gathered[everywhere], dense[everywhere], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gathered[~everywhere], fast(x)[~everywhere], atol=1e-5, rtol=1e-5)


def test_a_mask_learns_what_a_tile_was_worth():
    slow, fast = layers()
    x, keep = torch.randn(1, 4, 8, 8), torch.tensor([[1.0, 0.0, 0.0, 1.0]], requires_grad=True)
    weight = torch.randn(1, 6, 8, 8)
    out = route_tiles(x, tiles_of((8, 8), keep, 'masked'), slow, fast)
    (grad,) = torch.autograd.grad((weight * out).sum(), keep)
    worth = weight * (slow(F.pad(x, (1, 1, 1, 1))) - fast(x))
    expected = worth[0].sum(0).unfold(0, 4, 4).unfold(1, 4, 4).sum(dim=(2, 3)).view(1, -1)
    torch.testing.assert_close(grad, expected, atol=1e-4, rtol=1e-4)


def test_without_a_chosen_tile_only_the_fast_path_runs():
    _, fast = layers()
    x = torch.randn(1, 4, 8, 8)
    tiles = tiles_of((8, 8), torch.zeros(1, 4), 'gathered')
    out = route_tiles(x, tiles, lambda _: pytest.fail('no tile was chosen'), fast)
    torch.testing.assert_close(out, fast(x))
