import math

import pytest
from mmengine.config import Config

from mmdyn.engine import distributed


def test_one_process_needs_nothing():
    cfg = Config(dict(launcher='none', model=dict(norm=dict(type='SyncBN'))))
    assert distributed.prepare_cpu_distributed(cfg) is None
    assert cfg.model.norm.type == 'SyncBN'


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_a_launcher_that_did_not_launch_is_told(monkeypatch, launcher):
    names = distributed._ENVIRONMENT[launcher]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=rf'--launcher {launcher}: .*{names[0]}, {names[1]}'):
        distributed.check_launcher(launcher)
    for rank, size in (('1', '1'), ('first', '2'), ('0', 'two')):
        monkeypatch.setenv(names[0], rank)
        monkeypatch.setenv(names[1], size)
        with pytest.raises(ValueError, match=f'are {rank!r} and {size!r}'):
            distributed.check_launcher(launcher)
    monkeypatch.setenv(names[1], '2')
    monkeypatch.setenv(names[0], '1')
    distributed.check_launcher(launcher)


def test_the_users_wrapper_settings_stay():
    cfg = Config(dict(find_unused_parameters=True))
    distributed.use_cpu_wrapper(cfg)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=True,
    )
    cfg = Config(dict(model_wrapper_cfg=dict(broadcast_buffers=True, static_graph=True)))
    distributed.use_cpu_wrapper(cfg)
    assert cfg.model_wrapper_cfg.broadcast_buffers
    assert cfg.model_wrapper_cfg.static_graph
    other = dict(type='MMSeparateDistributedDataParallel')
    cfg = Config(dict(model_wrapper_cfg=other))
    distributed.use_cpu_wrapper(cfg)
    assert cfg.model_wrapper_cfg == other


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
