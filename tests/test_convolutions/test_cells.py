"""A convolution of an upsampled map, averaged back to the size of the small map."""

import pytest
import torch
import torch.nn.functional as F

from mmdyn.convolutions.kernels import Choices, FastKernel, conv_with
from mmdyn.convolutions.upsampled import conv_of_upsampled


@pytest.mark.parametrize('hw', [(2, 2), (2, 3), (6, 9), (5, 2)])
@pytest.mark.parametrize('factor', [2, 4, 8])
@pytest.mark.parametrize('batch', [1, 2, 3])
def test_it_is_the_average_of_the_convolution(hw, factor, batch):
    torch.manual_seed(0)
    x, weight = torch.randn(batch, 7, *hw), torch.randn(5, 7, 3, 3)
    size = tuple(factor * side for side in hw)
    large = F.interpolate(x.double(), size, mode='bilinear')
    expected = F.avg_pool2d(F.conv2d(large, weight.double(), padding=1), factor)
    kernel = FastKernel(conv_with(weight), Choices())
    with torch.no_grad():
        ours = conv_of_upsampled(x, kernel, size, cells=hw)
        total = torch.ones(batch, *hw, 5)
        added = conv_of_upsampled(x, kernel, size, cells=hw, out=total)
    torch.testing.assert_close(ours.permute(0, 3, 1, 2).double(), expected, atol=1e-4, rtol=1e-4)
    assert added is total
    torch.testing.assert_close(total, ours + 1)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(
    ('size', 'cells'), [((13, 16), (6, 8)), ((12, 12), (6, 4)), ((6, 8), (6, 8))]
)
def test_other_sizes_are_averaged_after_interpolation(size, cells, align_corners):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 6, 8), torch.randn(4, 3, 3, 3)
    settings = dict(size=size, mode='bilinear', align_corners=align_corners)
    large = F.conv2d(F.interpolate(x, **settings), weight, padding=1)
    with torch.no_grad():
        kernel = FastKernel(conv_with(weight), Choices())
        ours = conv_of_upsampled(x, kernel, size, align_corners, cells=cells)
    expected = F.adaptive_avg_pool2d(large, cells)
    torch.testing.assert_close(ours.permute(0, 3, 1, 2), expected, atol=1e-4, rtol=1e-4)
