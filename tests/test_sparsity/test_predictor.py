import pytest
import torch

from mmdyn.sparsity import ScorePredictor
from mmdyn.sparsity.predictor import masked_mean


def test_scores_are_log_probabilities_in_float32_also_under_autocast():
    predictor, x = ScorePredictor(16), torch.randn(2, 6, 16)
    with torch.autocast('cpu', torch.bfloat16):
        scores = predictor(x)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 6))


def test_half_of_the_channels_is_global_half_local():
    predictor, x = ScorePredictor(16), torch.randn(1, 6, 16)
    changed = x.clone()
    changed[0, 0] += torch.randn(16)
    difference = (predictor(changed) - predictor(x)).abs().sum(-1)[0]
    # The changed location is affected most, the others through the mean.
    assert difference.argmax() == 0 and (difference > 0).all()


def test_what_the_mask_leaves_out_does_not_reach_the_others():
    predictor, x = ScorePredictor(16).eval(), torch.randn(2, 6, 16)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 4:] = False
    padded = predictor(x, mask)[:, :4]
    torch.testing.assert_close(padded, predictor(x[:, :4]))


def test_masked_mean():
    x = torch.arange(8.0).view(1, 4, 2)
    mask = torch.tensor([[True, False, True, False]])
    assert masked_mean(x, mask).tolist() == [[[2.0, 3.0]]]
    torch.testing.assert_close(masked_mean(x, None), masked_mean(x, torch.ones(1, 4)))
    assert masked_mean(x, torch.zeros(1, 4)).tolist() == [[[0.0, 0.0]]]


def test_too_few_channels_are_refused():
    with pytest.raises(ValueError, match='at least 4'):
        ScorePredictor(3)
