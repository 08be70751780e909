import pytest
import torch

from mmdyn.sparsity import SparseOutput
from mmdyn.sparsity.decision import check_valid_shapes, valid_mask_of
from tests.test_sparsity.decisions import decision


def test_indices_address_the_flattened_batch_and_are_made_once():
    made = decision([[1, 0, 1], [0, 0, 1]])
    assert made.keep_idx.tolist() == [0, 2, 5]
    assert made.drop_idx.tolist() == [1, 3, 4]
    assert made.keep_idx is made.keep_idx
    assert not made.all_slow
    assert decision([[1, 1]]).all_slow


def test_slow_locations_come_first_in_the_order_of_the_map():
    order, most, fewest = decision([[0, 1, 0, 1], [0, 0, 1, 0]]).slow_first
    assert order.tolist() == [[1, 3, 0, 2], [2, 0, 1, 3]]
    assert (most, fewest) == (2, 1)


def test_kept_fraction_leaves_padding_out():
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    made = decision([[1, 0, 0, 0], [1, 0, 0, 0]], valid=valid)
    assert made.kept_fraction().tolist() == [0.25, 0.5]


def test_each_image_has_the_top_left_of_the_batchs_map():
    mask = valid_mask_of([(4, 4), (3, 2)], (4, 4), torch.device('cpu'))
    assert mask[0].all()
    assert mask[1].view(4, 4).nonzero().amax(0).tolist() == [2, 1]
    assert mask[1].sum() == 3 * 2


@pytest.mark.parametrize('shapes', [None, [(4, 4), (4, 4)]])
def test_no_mask_without_padding(shapes):
    assert valid_mask_of(shapes, (4, 4), torch.device('cpu')) is None


def test_shapes_on_a_map_that_a_neck_made():
    feats = (torch.zeros(2, 1, 5, 8), torch.zeros(2, 1, 2, 4))
    out = SparseOutput(feats, (), shapes=([(5, 8), (3, 5)], [(2, 4), (1, 2)]))
    assert list(out.shapes_on((2, 4))) == [(2, 4), (1, 2)]
    assert list(out.shapes_on((20, 32))) == [(20, 32), (12, 20)]
    assert SparseOutput(feats, ()).shapes_on((2, 4)) is None


@pytest.mark.parametrize('shapes', [[(64, 64)], [(64, 64), (65, 64)], [(64, 64), (0, 3)]])
def test_valid_shapes_must_fit_the_batch(shapes):
    with pytest.raises(ValueError, match='valid_shapes'):
        check_valid_shapes(shapes, 2, (64, 64))
