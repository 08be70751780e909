"""tools/train.py."""

import math
import os
import subprocess
import sys

import pytest
import torch

from tests.test_reliability.tiny import call
from tests.test_tools.segmentation import ROOT, write_config, write_data


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('data') / 'tree')


@pytest.fixture
def config(tmp_path, data):
    return write_config(tmp_path, data)


def train(*argv) -> int:
    """Run the tool in this process; returns its exit code."""
    return call('train', *argv)[0]


def run(script, *arguments, **env):
    return subprocess.run(
        ['bash', str(ROOT / 'tools' / f'{script}.sh'), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **env},
    )


def load(path):
    return torch.load(path, weights_only=False)


def test_trains_with_our_adapter_and_resumes_as_if_never_stopped(tmp_path, config):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    longer = ('--cfg-options', 'train_cfg.max_iters=4')
    assert train(config, '--work-dir', whole, *longer) == 0
    assert train(config, '--work-dir', parts, '--resume') == 0  # no checkpoint yet: starts from 0
    assert (parts / 'last_checkpoint').read_text().endswith('iter_2.pth')
    assert train(config, '--work-dir', parts, '--resume', *longer) == 0
    expected, found = load(whole / 'iter_4.pth'), load(parts / 'iter_4.pth')
    assert found['message_hub']['runtime_info']['iter'] == 3
    for key, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][key], value), key
    assert 'rng_state' in found
    log = next(whole.glob('*/*.log')).read_text()
    assert "model.type 'EncoderDecoder' -> 'mmdyn.DynamicEncoderDecoder'" in log
    assert 'loss_keep_ratio' in log


def test_work_dir_defaults_to_the_configs_name(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(config, '--cfg-options', 'train_cfg.max_iters=1', 'val_cfg=None',
                 'val_dataloader=None', 'val_evaluator=None') == 0  # fmt: skip
    assert (tmp_path / 'work_dirs' / 'tiny' / 'iter_1.pth').is_file()


@pytest.mark.parametrize('norm', ['SyncBN', pytest.param('BN', marks=pytest.mark.slow)])
def test_two_processes_end_with_equal_weights(tmp_path, config, norm):
    """Over gloo, with different random numbers per rank; weights and running statistics."""
    config.write_text(config.read_text().replace("type='SyncBN'", f"type='{norm}'"))
    (tmp_path / 'ranks.py').write_text(RANKS)
    config = tmp_path / 'ranks_config.py'
    config.write_text(RANKS_CONFIG)
    env = dict(PYTHONPATH=f'{ROOT}{os.pathsep}{tmp_path}', PORT=str(29500 + os.getpid() % 500))

    done = run('dist_train', config, 2, '--work-dir', tmp_path / 'work', **env)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load(tmp_path / 'work' / f'rank{rank}.pth') for rank in (0, 1))
    for key, value in first['weights'].items():
        assert torch.equal(value, second['weights'][key]), key
        assert torch.isfinite(value).all(), key
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'over gloo' in log
    assert ('1 SyncBN layer config(s) became BN' in log) == (norm == 'SyncBN')
    assert math.isfinite(first['loss']) and first['loss'] != second['loss']


RANKS_CONFIG = """
_base_ = 'tiny.py'
custom_imports = dict(imports=['mmdyn', 'ranks'], allow_failed_imports=False)
custom_hooks = [dict(type='KeepRank')]
default_hooks = dict(checkpoint=dict(interval=1))
randomness = dict(diff_rank_seed=True)
"""

RANKS = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KeepRank(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        kept = dict(weights=runner.model.module.state_dict(), loss=outputs['loss'].item())
        torch.save(kept, f'{runner.work_dir}/rank{runner.rank}.pth')
"""


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train'])
def test_scripts_say_how_they_are_used(script):
    done = run(script, 'config.py')
    assert done.returncode == 2
    assert done.stderr.startswith(f'usage: {script}.sh')
    assert "a segmentor's or a detector's" in done.stderr
