"""What a config that asks for FSDP must and must not hold."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import mmdyn
from mmdyn.engine.sharding import (
    FSDPStrategy,
    prepare_sharding,
    without_sharding,
    wrap_blocks,
)
from mmdyn.registry import FUNCTIONS

CONFIG = Path(mmdyn.__file__).parents[1] / 'configs' / 'upernet_dynswin-b_ade20k_fsdp.py'


@pytest.fixture
def cfg():
    cfg = Config.fromfile(CONFIG)
    cfg.launcher = 'pytorch'
    return cfg


def test_the_config_is_made_ready_for_the_cpu(cfg, monkeypatch):
    monkeypatch.setattr('mmdyn.engine.sharding.get_device', lambda: 'cpu')
    assert '(FSDP)' in prepare_sharding(cfg)
    assert cfg.strategy.type == 'mmdyn.FSDPStrategy'
    assert cfg.strategy.model_wrapper.device_id == 'cpu'
    # On a CPU, 'full' ends in a segmentation fault when the checkpoint is written.
    assert cfg.strategy.state_dict_cfg.state_dict_type == 'FULL_STATE_DICT'
    assert cfg.strategy.state_dict_cfg.state_dict_config.offload_to_cpu is False


def test_on_an_accelerator_mmengine_chooses_the_device(cfg, monkeypatch):
    monkeypatch.setattr('mmdyn.engine.sharding.get_device', lambda: 'cuda')
    prepare_sharding(cfg)
    assert 'device_id' not in cfg.strategy.model_wrapper
    assert cfg.strategy.state_dict_cfg == 'full'


def test_other_configs_stay_as_they_are():
    cfg = Config(dict(launcher='pytorch', model=dict()))
    before = cfg.to_dict()
    assert prepare_sharding(cfg) is None and without_sharding(cfg) is None
    assert cfg.to_dict() == before


def test_an_evaluation_is_not_sharded(cfg):
    assert 'FSDP' in without_sharding(cfg)
    assert 'strategy' not in cfg and 'runner_type' not in cfg


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'launcher': 'none'}, 'tools/dist_train.sh'),
        ({'runner_type': 'Runner'}, "runner_type='FlexibleRunner'"),
        ({'strategy.state_dict_cfg': 'local'}, 'one file per process'),
        ({'strategy.model_wrapper.use_orig_params': False}, 'use_orig_params'),
        ({'strategy.model_wrapper.mixed_precision': dict(param_dtype='float16')}, '--amp'),
        ({'model.test_cfg.mode': 'slide'}, 'auto_wrap_policy'),
        ({'optim_wrapper.constructor': 'LearningRateDecayOptimizerConstructor'}, 'one dimension'),
        ({'optim_wrapper.paramwise_cfg.flat_decay_mult': 0.0}, 'norm_decay_mult'),
        ({'optim_wrapper.clip_grad': dict(max_norm=1.0)}, "type='value'"),
    ],
)
def test_what_does_not_go_with_it_is_refused_with_a_remedy(cfg, options, said):
    cfg.merge_from_dict(options)
    with pytest.raises(ValueError, match=said):
        prepare_sharding(cfg)


@pytest.mark.parametrize(
    'options',
    [
        {'optim_wrapper.clip_grad': dict(type='value', clip_value=1.0)},
        {'model.test_cfg.mode': 'slide', 'strategy.model_wrapper.auto_wrap_policy': None},
        {'optim_wrapper.constructor': 'mmdyn.FinetuneOptimWrapperConstructor'},
        {'strategy': dict(_delete_=True, type='FSDPStrategy')},
    ],
)
def test_what_goes_with_it_is_taken(cfg, options):
    cfg.merge_from_dict(options)
    assert prepare_sharding(cfg)


def test_the_optimizer_of_a_training_without_it_is_refused():
    strategy = FSDPStrategy.__new__(FSDPStrategy)
    with pytest.raises(ValueError, match='written without FSDP'):
        strategy.load_optim_state_dict(dict(state={0: {}}, param_groups=[]))


def test_units_are_the_blocks_whose_forward_is_called():
    from mmdyn.models import DynamicSwin

    assert FUNCTIONS.get('mmdyn.wrap_blocks') is wrap_blocks
    model = DynamicSwin(embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2), window_size=4)
    units = [module for module in model.modules() if wrap_blocks(module, False, 0)]
    assert len(units) == 7 and all(type(unit).__name__ == 'DynamicSwinBlock' for unit in units)
    # Gathered by their forward alone: every block is called, and once, whatever is kept.
    calls = []
    for unit in units:
        unit.register_forward_hook(lambda module, *_: calls.append(module))
    model.eval()(torch.randn(1, 3, 64, 64))
    assert calls == units
