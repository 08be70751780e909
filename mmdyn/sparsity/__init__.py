"""Scores, decisions, two-path execution and their losses.

Imports torch only, nothing of OpenMMLab, and depends on no particular backbone.
"""

from mmdyn.sparsity.decision import Decision, SparseOutput
from mmdyn.sparsity.losses import (
    feature_distill_loss,
    keep_ratio_loss,
    logit_distill_loss,
)
from mmdyn.sparsity.policy import (
    FixedPolicy,
    GumbelPolicy,
    Policy,
    RandomPolicy,
    StaticPolicy,
    ThresholdPolicy,
    TopKPolicy,
)
from mmdyn.sparsity.predictor import ScorePredictor
from mmdyn.sparsity.routing import route

__all__ = [
    'Decision',
    'FixedPolicy',
    'GumbelPolicy',
    'Policy',
    'RandomPolicy',
    'ScorePredictor',
    'SparseOutput',
    'StaticPolicy',
    'ThresholdPolicy',
    'TopKPolicy',
    'feature_distill_loss',
    'keep_ratio_loss',
    'logit_distill_loss',
    'route',
]
