"""Dense-to-sparse training with tools/train.py: a dense model is the start and the teacher."""

import pytest
import torch

pytest.importorskip('mmseg')

from tests.test_reliability.tiny import call
from tests.test_tools.segmentation import write_config, write_data

FINETUNE = """
_base_ = './tiny.py'
load_from = 'LOAD_FROM'
model = dict(teacher='self')
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    paramwise_cfg=dict(part_lr_mult=dict(pretrained=0.1)))
custom_hooks = [
    dict(type='mmdyn.HoldPretrainedHook', end=3),
    dict(type='mmdyn.KeepRatioHook', end=4),
    dict(type='mmdyn.TrainingPolicyHook',
         phases=[dict(begin=3, policy=dict(type='mmdyn.TopKPolicy'))])]
"""
DENSE = """
_base_ = './tiny.py'
model = dict(backbone=dict(type='SwinTransformer'))
"""


def train(*argv) -> int:
    return call('train', *argv)[0]


@pytest.fixture
def finetune(tmp_path):
    """A config that starts from a briefly trained dense model, and that model."""
    write_config(tmp_path, write_data(tmp_path / 'data'))
    (tmp_path / 'dense.py').write_text(DENSE)
    one = ('train_cfg.max_iters=1', 'train_cfg.val_interval=9')
    dense = tmp_path / 'dense' / 'iter_1.pth'
    assert train(tmp_path / 'dense.py', '--work-dir', dense.parent, '--cfg-options', *one) == 0
    config = tmp_path / 'finetune.py'
    config.write_text(FINETUNE.replace('LOAD_FROM', str(dense)))
    return config, dense


def weights(folder, iteration):
    return torch.load(folder / f'iter_{iteration}.pth', weights_only=False)['state_dict']


def log_of(folder):
    return ''.join(path.read_text() for path in sorted(folder.glob('*/*.log')))


def test_a_resumed_fine_tuning_keeps_its_teacher_and_its_schedules(tmp_path, finetune):
    config, dense = finetune
    longer = ('--cfg-options', 'train_cfg.max_iters=5')
    assert train(config, '--work-dir', tmp_path / 'whole', *longer) == 0
    log = log_of(tmp_path / 'whole')
    assert f'teacher: the dense model that training starts from, {dense}' in log
    assert 'loss_distill_feature' in log and 'loss_distill_logit' in log
    assert 'decisions are now made by TopKPolicy' in log
    # Frozen until the third iteration, while new parameters are trained.
    start = torch.load(dense, weights_only=False)['state_dict']
    held = weights(tmp_path / 'whole', 2)
    for key, value in held.items():
        if key in start and 'running' not in key and 'num_batches' not in key:
            assert torch.equal(value, start[key]), key
    assert train(config, '--work-dir', tmp_path / 'parts') == 0
    assert train(config, '--work-dir', tmp_path / 'parts', '--resume', *longer) == 0
    expected, found = weights(tmp_path / 'whole', 4), weights(tmp_path / 'parts', 4)
    assert any(not torch.equal(expected[key], value) for key, value in start.items())
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_without_its_dense_weights_it_does_not_go_on(tmp_path, finetune):
    config, dense = finetune
    work = ('--work-dir', tmp_path / 'work')
    assert train(config, *work) == 0
    dense.unlink()
    code, _, error = call('train', config, *work, '--resume')
    assert code == 2 and 'model.teacher.checkpoint' in error
    other = tmp_path / 'other.py'
    half_trained = str(tmp_path / 'work' / 'iter_2.pth')
    other.write_text(
        "_base_ = './finetune.py'\nload_from = None\n"
        f'model = dict(teacher=dict(_delete_=True, checkpoint={half_trained!r}))\n'
    )
    code, _, error = call('train', other, '--work-dir', tmp_path / 'other')
    assert code == 2 and 'has predictors or fast paths' in error
    code, _, error = call('train', config, *work, '--resume', '--cfg-options', 'load_from=None')
    assert code == 2 and "model.teacher='self'" in error
