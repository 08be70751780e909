"""Losses as configs name them."""

import pytest
import torch

from mmdyn.models.losses import FeatureDistillLoss, KeepRatioLoss, LogitDistillLoss
from mmdyn.sparsity import Decision


def decision(mask, valid=None):
    return Decision(
        scores=torch.zeros(mask.shape), keep_mask=mask, keep_ratio=0.5, hw=(1, 4), valid_mask=valid
    )


def test_kept_tokens_only():
    student, teacher = torch.tensor([[[[1.0, 2, 3, 4]]]]), torch.zeros(1, 1, 1, 4)
    kept = [decision(torch.tensor([[1.0, 0, 1, 0]]))]
    loss = FeatureDistillLoss(loss_weight=2.0, kept_only=True)
    assert loss(student, teacher, kept).item() == 2 * (1 + 9) / 2
    with pytest.raises(ValueError, match=r'kept_only.*\(1, 4\).*\(2, 4\)'):
        loss(student.repeat(1, 1, 2, 1), teacher.repeat(1, 1, 2, 1), kept)


def test_features_of_padding_are_not_distilled():
    # Decisions about 1x4 locations, of which two are real; the last map has 1x2.
    valid = torch.tensor([[True, True, False, False]])
    decisions = [decision(torch.tensor([[1.0, 0, 0, 0]]), valid)]
    student = torch.tensor([[[[2.0, 100]]]])
    assert FeatureDistillLoss()(student, torch.zeros(1, 1, 1, 2), decisions).item() == 0.5 * 4


@pytest.mark.parametrize(('size', 'coarse', 'real'), [(33, 17, 16), (32, 16, 16), (33, 16, 15)])
def test_a_location_of_a_coarser_map_is_real_if_its_first_one_is(size, coarse, real):
    valid = (torch.arange(size) < real).unsqueeze(0)
    scores = torch.zeros(1, size)
    last = Decision(scores=scores, keep_mask=scores, keep_ratio=0.5, hw=(1, size), valid_mask=valid)
    student = torch.zeros(1, 1, 1, coarse)
    student[..., -(-real // 2) :] = 100  # padding
    assert FeatureDistillLoss()(student, torch.zeros_like(student), [last]).item() == 0
    student[..., -(-real // 2) - 1] = 1
    assert FeatureDistillLoss()(student, torch.zeros_like(student), [last]).item() > 0


def test_maps_without_a_norm_of_their_own_are_normalised_on_request():
    teacher = torch.randn(1, 8, 1, 4)
    decisions = [decision(torch.ones(1, 4))]
    scaled = 50 * teacher + 3
    assert FeatureDistillLoss()(scaled, teacher, decisions) > 10
    assert FeatureDistillLoss(normalize=True)(scaled, teacher, decisions) < 1e-4


def test_weights_are_the_originals_and_a_negative_one_is_refused():
    weights = [loss().loss_weight for loss in (KeepRatioLoss, FeatureDistillLoss, LogitDistillLoss)]
    assert weights == [10.0, 0.5, 0.5]
    with pytest.raises(ValueError, match=r'LogitDistillLoss.* -1'):
        LogitDistillLoss(-1)
