import pytest
import torch

from mmdyn.sparsity import Decision
from mmdyn.sparsity.decision import check_valid_shapes, valid_mask_of


def decision(mask, **kwargs):
    mask = torch.as_tensor(mask, dtype=torch.float)
    return Decision(
        scores=mask.log(), keep_mask=mask, keep_ratio=0.5, hw=(1, mask.shape[1]), **kwargs
    )


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


def test_decision_is_a_value():
    with pytest.raises(AttributeError):
        decision([[1, 0]]).keep_ratio = 0.1


def test_kept_fraction_leaves_padding_out():
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    made = decision([[1, 0, 0, 0], [1, 0, 0, 0]], valid_mask=valid)
    assert made.kept_fraction().tolist() == [0.25, 0.5]


def test_valid_mask_rounds_up_to_whole_locations():
    mask = valid_mask_of([(64, 64), (33, 17)], (64, 64), (4, 4), 16, torch.device('cpu'))
    assert mask[0].all()
    assert mask[1].view(4, 4).nonzero().amax(0).tolist() == [2, 1]
    assert mask[1].sum() == 3 * 2


@pytest.mark.parametrize('shapes', [None, [(64, 64), (64, 64)]])
def test_no_mask_without_padding(shapes):
    assert valid_mask_of(shapes, (64, 64), (4, 4), 16, torch.device('cpu')) is None


@pytest.mark.parametrize('shapes', [[(64, 64)], [(64, 64), (65, 64)], [(64, 64), (0, 3)]])
def test_valid_shapes_must_fit_the_batch(shapes):
    with pytest.raises(ValueError, match='valid_shapes'):
        check_valid_shapes(shapes, 2, (64, 64))
