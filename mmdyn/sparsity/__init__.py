"""The mechanism: scores, decisions, two-path execution and the losses on them.

Imports torch only: nothing here knows of OpenMMLab or of a particular backbone.
"""

from mmdyn.sparsity.decision import Decision, SparseOutput
from mmdyn.sparsity.losses import keep_ratio_loss
from mmdyn.sparsity.policy import (
    FixedPolicy,
    GumbelPolicy,
    Policy,
    RandomPolicy,
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
    'ThresholdPolicy',
    'TopKPolicy',
    'keep_ratio_loss',
    'route',
]
