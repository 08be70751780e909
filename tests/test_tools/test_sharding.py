"""Two processes on the CPU that share one model (FSDP): everything else stays as it was."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdyn.converters.additions import is_new
from tests.test_tools.segmentation import ROOT, load_tool, write_config, write_data
from tests.test_tools.test_train import load, run
from tests.torch_line import needs_sharding_on_cpu

pytestmark = needs_sharding_on_cpu

CONFIG = """
_base_ = 'tiny.py'
custom_imports = dict(imports=['mmdyn', 'shards'], allow_failed_imports=False)
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(type='MMFullyShardedDataParallel', auto_wrap_policy='mmdyn.wrap_blocks'))
load_from = 'DENSE'
model = dict(type='mmdyn.DynamicEncoderDecoder', teacher='self')
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    # Plain steps: Adam's size of a step hides an error in the gradient's scale.
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0, part_lr_mult=dict(pretrained=0.5)))
param_scheduler = [dict(type='PolyLR', by_epoch=False, begin=0, end=6, eta_min=0.0)]
custom_hooks = [
    dict(type='mmdyn.HoldPretrainedHook', end=2),
    dict(type='mmdyn.KeepRatioHook', end=3),
    dict(type='mmdyn.TrainingPolicyHook',
         phases=[dict(begin=3, policy=dict(type='mmdyn.TopKPolicy'))]),
    dict(type='KeepShards')]
train_cfg = dict(max_iters=4, val_interval=4)
randomness = dict(seed=0, diff_rank_seed=True)
"""

HOOK = """
import json
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KeepShards(Hook):
    def after_val_epoch(self, runner, metrics=None):
        with open(f'{runner.work_dir}/validated.json', 'w') as file:
            json.dump({key: float(value) for key, value in metrics.items()}, file)

    def after_train(self, runner):
        module = runner.model.module
        kept = dict(
            own=sum(p.numel() for p in runner.model.parameters()),
            block=type(module.backbone.stages[2].blocks[0]).__name__,
            keep_ratios=module.backbone.keep_ratios)
        with open(f'{runner.work_dir}/rank{runner.rank}.json', 'w') as file:
            json.dump(kept, file)
"""

# In one pair of processes, as most of their time goes into imports; the tool itself comes last, as
# it closes the process group.
TRAIN = """
import sys
from mmdyn.engine.prepare import build_runner, make_teacher, prepare_training
from tests.test_tools.segmentation import load_tool

config, folder = sys.argv[1:]


def train(name, **options):
    options = dict(options, experiment_name=name)
    cfg, notes = prepare_training(
        config, work_dir=f'{folder}/{name}', launcher='pytorch', cfg_options=options)
    runner = build_runner(cfg, notes)
    make_teacher(runner)
    runner.train()


train('whole', runner_type='Runner', strategy=None)
train('sharded')
load_tool('train').main([
    config, '--work-dir', f'{folder}/resumed', '--resume', f'{folder}/sharded/iter_2.pth',
    '--launcher', 'pytorch', '--cfg-options', 'experiment_name=resumed'])
"""


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Trainings of four iterations: not sharded, sharded, sharded and resumed after two."""
    folder = tmp_path_factory.mktemp('sharding')
    tiny = write_config(folder, write_data(folder / 'tree'))
    (folder / 'shards.py').write_text(HOOK)
    path = folder / 'sharded.py'
    path.write_text(CONFIG.replace('DENSE', str(folder / 'dense.pth')))
    model = build(tiny)
    dense = {key: value for key, value in model.state_dict().items() if not is_new(key)}
    torch.save(dict(state_dict=dense), folder / 'dense.pth')

    (folder / 'train.py').write_text(TRAIN)
    launch = ('-m', 'torch.distributed.run', '--nproc_per_node=2')
    port = f'--master_port={30000 + os.getpid() % 500}'
    env = dict(PYTHONPATH=f'{ROOT}{os.pathsep}{folder}')
    done = run(sys.executable, *launch, port, folder / 'train.py', path, folder, **env)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(
        config=path,
        model=model,
        dense=dense,
        **{name: folder / name for name in ('whole', 'sharded', 'resumed')},
    )


def build(path):
    from mmseg.registry import MODELS

    cfg = Config.fromfile(path)
    init_default_scope('mmseg')
    cfg.model.type = 'mmdyn.DynamicEncoderDecoder'
    cfg.model.decode_head.norm_cfg.type = 'BN'
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


@pytest.mark.slow
def test_each_process_has_its_share_and_the_hooks_reach_the_backbone(runs):
    total = sum(p.numel() for p in runs.model.parameters())
    ranks = [json.loads((runs.sharded / f'rank{rank}.json').read_text()) for rank in (0, 1)]
    assert sum(rank['own'] for rank in ranks) == total
    assert all(rank['own'] < 0.6 * total for rank in ranks)
    assert all('FullySharded' in rank['block'] for rank in ranks)
    assert all(rank['keep_ratios'] == [0.7, 0.5, 0.3] for rank in ranks)
    alone = json.loads((runs.whole / 'rank0.json').read_text())
    assert alone['own'] == total and alone['block'] == 'DynamicSwinBlock'
    log = next(runs.sharded.glob('*/*.log')).read_text()
    assert '(FSDP)' in log and 'over gloo' in log
    assert 'loss_distill_logit' in log and 'TopKPolicy from now on' in log


@pytest.mark.slow
def test_it_trains_what_unsharded_processes_train(runs):
    for name in ('iter_2.pth', 'iter_4.pth'):
        sharded, whole = (load(work / name)['state_dict'] for work in (runs.sharded, runs.whole))
        assert list(sharded) == list(whole) == list(runs.model.state_dict())
        for key, value in whole.items():
            torch.testing.assert_close(sharded[key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.slow
def test_what_is_held_stands_still_and_then_learns(runs):
    early, late = (load(runs.sharded / f'iter_{i}.pth')['state_dict'] for i in (2, 4))
    for key, _ in runs.model.named_parameters():
        if is_new(key):
            continue
        assert torch.equal(early[key], runs.dense[key]), key
    assert not torch.equal(
        late['decode_head.conv_seg.weight'], early['decode_head.conv_seg.weight']
    )


@pytest.mark.slow
def test_a_resumed_training_equals_the_uninterrupted_one(runs):
    whole, parts = (load(work / 'iter_4.pth') for work in (runs.sharded, runs.resumed))
    for key, value in whole['state_dict'].items():
        assert torch.equal(parts['state_dict'][key], value), key
    assert parts['optimizer']['base_param_settings'] == whole['optimizer']['base_param_settings']
    assert len(parts['rng_state']['ranks']) == 2


@pytest.mark.slow
def test_one_process_evaluates_the_checkpoint_to_the_same_figures(runs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(runs.config.parent)  # the config imports a module beside it
    argv = [runs.config, runs.sharded / 'iter_4.pth', '--work-dir', tmp_path]
    assert load_tool('test').main([str(arg) for arg in argv]) == 0
    (found,) = tmp_path.glob('*/*.json')
    found = json.loads(found.read_text())
    validated = json.loads((runs.sharded / 'validated.json').read_text())
    assert found['mIoU'] == pytest.approx(validated['mIoU'], abs=0.01)
    assert found['keep_ratio_0'] == pytest.approx(validated['keep_ratio_0'])
