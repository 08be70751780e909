"""Registers the policies for configs."""

from __future__ import annotations

from mmdyn.registry import MODELS
from mmdyn.sparsity import (
    FixedPolicy,
    GumbelPolicy,
    Policy,
    RandomPolicy,
    StaticPolicy,
    ThresholdPolicy,
    TopKPolicy,
)

POLICIES = (FixedPolicy, GumbelPolicy, RandomPolicy, StaticPolicy, ThresholdPolicy, TopKPolicy)
"""Policies available to configs."""

for _policy in POLICIES:
    MODELS.register_module(module=_policy)


def build_policy(policy: Policy | dict) -> Policy:
    """Return a given policy, or build one from a config: ``dict(type='mmdyn.TopKPolicy')``.

    Raises:
        TypeError: if it is neither a callable nor a config.
    """
    if isinstance(policy, dict):
        policy = MODELS.build(policy)
    if not callable(policy) or isinstance(policy, type):
        raise TypeError(
            'policy must be an instance such as TopKPolicy() or a config dict such as '
            f"dict(type='mmdyn.TopKPolicy'), got {policy!r}"
        )
    return policy
