import pytest
import torch
import torch.nn.functional as F

from mmdyn.sparsity.tiles import TileGrid

GRIDS = [TileGrid((8, 12), 4), TileGrid((7, 10), 4), TileGrid((3, 5), 8), TileGrid((5, 4), 1)]


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_means_and_spread_agree_on_what_lies_in_a_tile(grid):
    numbers = torch.arange(2 * grid.shape[0] * grid.shape[1]).float().view(2, -1)
    spread = grid.spread(numbers)
    assert spread.shape == (2, *grid.hw)
    torch.testing.assert_close(grid.means(spread.unsqueeze(1)).squeeze(-1), numbers)


@pytest.mark.parametrize('batch', [1, 2, 3])
@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_work_on_tiles_is_the_dense_work_in_them(grid, batch):
    torch.manual_seed(0)
    x = torch.randn(batch, *grid.hw, 3)
    first, second = torch.randn(4, 3, 3, 3), torch.randn(3, 4, 3, 3)
    maps = x.permute(0, 3, 1, 2)
    # With a bias, so that values outside the map are not 0 after the first convolution.
    dense = F.conv2d(F.relu(F.conv2d(maps, first, torch.ones(4), padding=1)), second, padding=1)
    dense = dense.permute(0, 2, 3, 1)
    keep = torch.rand(batch, grid.shape[0] * grid.shape[1]) < 0.5
    keep[0, 0] = True
    chosen = keep.flatten().nonzero().squeeze(1)
    tiles = F.relu(F.conv2d(grid.windows(chosen, 2).take(maps), first, torch.ones(4)))
    tiles = F.conv2d(grid.windows(chosen, 1).hide(tiles), second)
    out = grid.put(torch.zeros(batch, *grid.hw, 3), chosen, tiles.permute(0, 2, 3, 1))
    expected = torch.where(grid.spread(keep).unsqueeze(-1), dense, 0.0)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_a_tile_of_nothing_is_refused():
    with pytest.raises(ValueError, match='got 0'):
        TileGrid((4, 4), 0)
