import math
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from torch import nn

from mmdyn.engine import distributed
from mmdyn.engine.hooks import sync_running_stats


def test_one_process_needs_nothing():
    cfg = Config(dict(launcher='none', model=dict(norm=dict(type='SyncBN'))))
    assert distributed.prepare_cpu_distributed(cfg) is None
    assert cfg.model.norm.type == 'SyncBN'


@pytest.mark.parametrize(
    ('given', 'set_there'),
    [
        (
            dict(find_unused_parameters=True),
            dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=True,
            ),
        ),
        (
            dict(model_wrapper_cfg=dict(broadcast_buffers=True, static_graph=True)),
            dict(broadcast_buffers=True, static_graph=True, device_ids=None),
        ),
        (
            dict(model_wrapper_cfg=dict(type='MMSeparateDistributedDataParallel')),
            dict(type='MMSeparateDistributedDataParallel'),
        ),
    ],
)
def test_the_users_wrapper_settings_stay(given, set_there):
    cfg = Config(given)
    distributed.use_cpu_wrapper(cfg)
    assert {**cfg.model_wrapper_cfg, **set_there} == cfg.model_wrapper_cfg


def test_sync_bn_is_reverted_wherever_it_is():
    heads = [dict(norm_cfg=dict(type='SyncBN', eps=1e-3)), dict(norm_cfg=dict(type='GN'))]
    model = dict(norm_cfg=dict(type='SyncBN'), heads=heads, backbone=dict(norm_cfg=None))
    cfg = Config(dict(model=model, sync_bn='torch'))
    assert distributed.revert_sync_bn(cfg) == 2
    assert cfg.model.norm_cfg.type == cfg.model.heads[0].norm_cfg.type == 'BN'
    assert cfg.model.heads[0].norm_cfg.eps == 1e-3
    assert cfg.model.heads[1].norm_cfg.type == 'GN'
    assert cfg.sync_bn is None


@pytest.mark.parametrize(
    ('settings', 'timeout'),
    [
        ({}, distributed.DEFAULT_TIMEOUT),
        (dict(env_cfg=dict(cudnn_benchmark=True)), distributed.DEFAULT_TIMEOUT),
        (dict(env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=7.5))), 7.5),
    ],
)
def test_processes_wait_for_each_other_a_bounded_time(settings, timeout):
    cfg = Config(settings)
    assert distributed.set_timeout(cfg) == timeout
    assert cfg.env_cfg.dist_cfg.timeout == timeout


@pytest.mark.parametrize('timeout', [0, -1, math.inf, 'long', True, None])
def test_a_timeout_that_is_no_time_is_refused(timeout):
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(timeout=timeout))))
    with pytest.raises(ValueError, match=r'dist_cfg\.timeout'):
        distributed.set_timeout(cfg)


def test_statistics_of_frozen_norms_are_left_alone(monkeypatch):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
    monkeypatch.setattr(sync_running_stats, 'get_world_size', lambda: 3)

    def all_reduce(buffers, op):
        for buffer in buffers:
            buffer.add_(1)

    monkeypatch.setattr(sync_running_stats, 'all_reduce_params', all_reduce)
    sync_running_stats.SyncRunningStatsHook().after_train_iter(SimpleNamespace(model=model), 0)
    assert model[0].running_mean.tolist() == [1, 1] and model[1].running_mean.tolist() == [0, 0]
