"""Registered losses."""

from types import SimpleNamespace

import pytest
import torch

from mmdyn.models.losses import (
    FeatureDistillLoss,
    KeepRatioLoss,
    LogitDistillLoss,
    known_pixels,
)
from tests.test_sparsity.decisions import decision


def test_kept_tokens_only():
    student, teacher = torch.tensor([[[[1.0, 2, 3, 4]]]]), torch.zeros(1, 1, 1, 4)
    kept = [decision(torch.tensor([[1.0, 0, 1, 0]]))]
    loss = FeatureDistillLoss(loss_weight=2.0, kept_only=True)
    assert loss(student, teacher, kept, None).item() == 2 * (1 + 9) / 2
    with pytest.raises(ValueError, match=r'kept_only.*\(1, 4\).*\(2, 4\)'):
        loss(student.repeat(1, 1, 2, 1), teacher.repeat(1, 1, 2, 1), kept, None)


def test_features_of_padding_are_not_distilled():
    student = torch.tensor([[[[2.0, 100]]]])
    decisions, real = [decision(torch.ones(1, 4))], torch.tensor([[True, False]])
    assert FeatureDistillLoss()(student, torch.zeros(1, 1, 1, 2), decisions, real) == 0.5 * 4


def test_labels_of_padding_are_not_known():
    data = torch.zeros(1, 9, 9)
    data[:, :, :4] = 255
    samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=data), img_shape=(8, 7))]
    known = known_pixels(samples, (3, 3), 255, [(2, 2)]).view(3, 3)
    # 2 columns out of 7: the second starts at 3.5, and its nearest label is in column 3.
    assert not known.any()
    data[:, :, 3] = 1
    known = known_pixels(samples, (3, 3), 255, [(2, 2)]).view(3, 3)
    assert known.nonzero().tolist() == [[0, 1], [1, 1]]
    # Without padding the last row and column count, too.
    assert known_pixels(samples, (3, 3), 255).view(3, 3).tolist() == [[False, True, True]] * 3


def test_maps_without_a_norm_of_their_own_are_normalised_on_request():
    teacher = torch.randn(1, 8, 1, 4)
    decisions = [decision(torch.ones(1, 4))]
    scaled = 50 * teacher + 3
    assert FeatureDistillLoss()(scaled, teacher, decisions, None) > 10
    assert FeatureDistillLoss(normalize=True)(scaled, teacher, decisions, None) < 1e-4


def test_weights_are_the_originals_and_a_negative_one_is_refused():
    weights = [loss().loss_weight for loss in (KeepRatioLoss, FeatureDistillLoss, LogitDistillLoss)]
    assert weights == [10.0, 0.5, 0.5]
    with pytest.raises(ValueError, match=r'LogitDistillLoss.* -1'):
        LogitDistillLoss(-1)
