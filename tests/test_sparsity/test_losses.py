import math

import pytest
import torch

from mmdyn.sparsity import feature_distill_loss, keep_ratio_loss, logit_distill_loss
from tests.test_sparsity.decisions import decision


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


def test_padding_does_not_count():
    valid = torch.tensor([[True, True, False, False]])
    assert keep_ratio_loss([decision(torch.tensor([[1.0, 0, 0, 0]]), 0.5, valid)]) == 0


def test_no_decisions_are_refused():
    with pytest.raises(ValueError, match='at least one decision'):
        keep_ratio_loss([])


def test_feature_distillation_by_hand():
    student = torch.tensor([[[[1.0, 2]], [[3.0, 5]]]], requires_grad=True)  # 2 channels, 1x2
    teacher = torch.tensor([[[[1.0, 0]], [[0.0, 5]]]])
    loss = feature_distill_loss(student, teacher)
    assert loss.item() == pytest.approx((0 + 4 + 9 + 0) / 4)
    loss.backward()
    # 2 · difference / 4 elements
    torch.testing.assert_close(student.grad, torch.tensor([[[[0.0, 1]], [[1.5, 0]]]]))


def test_feature_distillation_looks_where_the_mask_says():
    student, teacher = torch.tensor([[[[1.0, 7]]]]), torch.zeros(1, 1, 1, 2)
    assert feature_distill_loss(student, teacher, torch.tensor([[True, False]])).item() == 1
    assert feature_distill_loss(student, teacher, torch.tensor([[False, False]])).item() == 0


def test_logit_distillation_by_hand():
    # Probabilities 1/2, 1/2 against 3/4, 1/4 in the first pixel; equal ones in the second.
    student = torch.tensor([[[[0.0, 1]], [[0.0, 1]]]], requires_grad=True)
    teacher = torch.tensor([[[[math.log(3), 5]], [[0.0, 5]]]])
    loss = logit_distill_loss(student, teacher)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx(expected / 2)
    loss.backward()
    # (student - teacher probability) / 2 pixels
    expected = torch.tensor([[[[-0.125, 0]], [[0.125, 0]]]])
    torch.testing.assert_close(student.grad, expected)


def test_logit_distillation_leaves_ignored_pixels_out():
    student = torch.tensor([[[[0.0, 9]], [[0.0, 1]]]], requires_grad=True)
    teacher = torch.tensor([[[[math.log(3), -5]], [[0.0, 5]]]])
    loss = logit_distill_loss(student, teacher, torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    loss.backward()
    assert not student.grad[..., 1].any()
    assert logit_distill_loss(student, teacher, torch.tensor([[False, False]])).item() == 0


@pytest.mark.parametrize('loss', [feature_distill_loss, logit_distill_loss])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(loss, dtype):
    teacher = torch.randn(1, 3, 2, 2)
    assert loss(teacher.to(dtype), teacher.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize('loss', [feature_distill_loss, logit_distill_loss])
def test_a_teacher_of_another_shape_is_refused(loss):
    with pytest.raises(ValueError, match=r'\(1, 3, 2, 2\).*\(1, 4, 2, 2\)'):
        loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2))
