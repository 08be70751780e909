import pytest
import torch

from mmdyn.sparsity import Decision, keep_ratio_loss


def decision(mask, ratio, valid=None):
    return Decision(
        scores=torch.zeros(mask.shape),
        keep_mask=mask,
        keep_ratio=ratio,
        hw=(1, 4),
        valid_mask=valid,
    )


def test_value_and_gradient_by_hand():
    first = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]], requires_grad=True)
    second = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]], requires_grad=True)
    loss = keep_ratio_loss([decision(first, 0.5), decision(second, 0.25)])
    # ((0.25² + 0.25²) / 2 + (0² + 0.25²) / 2) / 2
    assert loss.item() == pytest.approx((0.0625 + 0.03125) / 2)
    loss.backward()
    # 1/2 predictors · 1/2 images · 2 · (fraction - ratio) · 1/4 locations
    torch.testing.assert_close(first.grad, torch.tensor([[0.03125] * 4, [-0.03125] * 4]))
    torch.testing.assert_close(second.grad, torch.tensor([[0.0] * 4, [-0.03125] * 4]))


def test_images_off_in_opposite_directions_do_not_cancel():
    mask = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    assert keep_ratio_loss([decision(mask, 0.5)]).item() == pytest.approx(0.25)


def test_padding_does_not_count():
    valid = torch.tensor([[True, True, False, False]])
    assert keep_ratio_loss([decision(torch.tensor([[1.0, 0, 0, 0]]), 0.5, valid)]) == 0


def test_no_decisions_are_refused():
    with pytest.raises(ValueError, match='at least one decision'):
        keep_ratio_loss([])
