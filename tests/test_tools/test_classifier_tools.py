"""The tools on a classifier and a folder of 20 pictures."""

import json
import re

import pytest
import torch
from mmengine.config import Config

from mmdyn.converters.additions import is_new
from mmdyn.converters.checkpoint_files import read_checkpoint
from mmdyn.datasets.mini_things import build_mini_things
from mmdyn.registry import MODELS
from tests.test_reliability.tiny import call

CONFIG = """
_base_ = 'mmdyn::imagenet/dynlvvit_mini.py'

train_dataloader = dict(batch_size=4, dataset=dict(
    _delete_=True, type='mmdyn.ClassFolder', data_root='{root}',
    data_prefix=dict(img_path='train'), pipeline={{{{_base_.train_pipeline}}}}))
val_dataloader = dict(batch_size=4, dataset=dict(
    _delete_=True, type='mmdyn.ClassFolder', data_root='{root}',
    data_prefix=dict(img_path='val'), pipeline={{{{_base_.test_pipeline}}}}))
test_dataloader = val_dataloader
load_from = None
model = dict(
    num_classes=6,
    data_preprocessor=dict(mixing=dict(mixup_alpha=0.8), erasing=0.5),
    backbone=dict(embed_dims=16, stem_channels=4),
)
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1))
custom_hooks = [dict(type='mmdyn.DecisionVisualizationHook', pictures=2), dict(type='EMAHook')]
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, data, and the work directory of a training of two iterations."""
    folder = tmp_path_factory.mktemp('classifier')
    build_mini_things(folder / 'data', train=2, val=2, seed=3)
    (folder / 'config.py').write_text(CONFIG.format(root=folder / 'data'))
    code, _, error = call('train', folder / 'config.py', '--work-dir', folder / 'work')
    assert code == 0, error
    return folder


def accuracy(folder, checkpoint, *more):
    work = folder / f'test_{checkpoint.stem}_{len(more)}'
    code, _, error = call('test', folder / 'config.py', checkpoint, '--work-dir', work, *more)
    assert code == 0, error
    metrics = json.loads(next(work.glob('*/*.json')).read_text())
    return metrics['accuracy/top1'], metrics['keep_ratio_0']


def test_training_resumes_and_draws(folder):
    argv = (folder / 'config.py', '--work-dir', folder / 'work', '--resume')
    code, _, error = call('train', *argv, '--cfg-options', 'train_cfg.max_iters=3')
    assert code == 0 and (folder / 'work' / 'iter_3.pth').exists(), error
    drawn = [path.name for path in (folder / 'work').rglob('val_*.png')]
    assert drawn and all(re.fullmatch(r'val_\d+_\d+\.png', name) for name in drawn)


def test_a_converted_checkpoint_predicts_the_same(folder):
    checkpoint, ours = folder / 'work' / 'iter_2.pth', folder / 'ours.pth'
    code, out, error = call('convert_checkpoint', checkpoint, ours, '--to', 'dynamic-lvvit')
    assert code == 0 and 'DynamicLVViT, mmdyn' in out and '2 tensors of aux_head' in out, error
    assert accuracy(folder, ours) == accuracy(folder, checkpoint)
    assert accuracy(folder, ours, '--keep-ratio', 1)[1] == 1
    before, after = read_checkpoint(checkpoint), torch.load(ours, weights_only=True)
    assert 'head.weight' in after['state_dict']
    classes = tuple(after['meta']['dataset_meta']['classes'])
    assert classes == tuple(before['meta']['dataset_meta']['classes']) and len(classes) == 6


def test_pictures_get_classes_and_drawings(folder):
    out = folder / 'out'
    argv = (folder / 'config.py', folder / 'work' / 'iter_2.pth', folder / 'data' / 'val')
    code, shown, error = call('infer', *argv, '--out', out, '--batch-size', 3)
    assert code == 0 and '12 picture(s)' in shown, error
    results = json.loads((out / 'results.json').read_text())
    assert len(results) == 12 and len(list(out.glob('*.png'))) == 12
    for result in results:
        assert result['kept_fractions'] == [0.5, 0.25, 0.125]
        names = {one['class'] for one in result['top']}
        assert len(names) == 5 and names <= {'bar', 'cross', 'disc', 'post', 'ring', 'triangle'}
        scores = [one['score'] for one in result['top']]
        assert scores == sorted(scores, reverse=True)


def test_costs_and_sweeps(folder):
    config, report = folder / 'config.py', folder / 'flops.json'
    assert call('get_flops', config, '--shape', 48, '--out', report)[0] == 0
    models = json.loads(report.read_text())['models']
    assert 0.3 < models['sparse']['macs'] / models['dense']['macs'] < 0.9
    code, out, error = call('benchmark', config, '--shape', 48, 48, '--rounds', 2)
    assert code == 0 and 'learned 0.5, 0.25, 0.125' in out, error
    argv = (config, folder / 'work' / 'iter_2.pth', '--keep-ratio', 0.5, 1, '--rounds', 2)
    code, _, error = call('sweep', *argv, '--out', folder / 'sweep')
    assert code == 0, error
    rows = json.loads((folder / 'sweep' / 'sweep.json').read_text())
    assert 'accuracy/top1' in json.dumps(rows)


def test_what_classifiers_have_not_is_said(folder):
    argv = (folder / 'config.py', folder / 'work' / 'iter_2.pth')
    for option in (('--out', folder / 'x.pkl'), ('--tta',)):
        code, _, error = call('test', *argv, *option)
        assert code == 2 and error.startswith('error: --') and 'Traceback' not in error
    code, _, error = call('train', folder / 'config.py', '--cfg-options', 'model.num_classes=4')
    assert code == 2 and 'has 6 classes, but model.num_classes=4' in error
    code, _, error = call(
        'train', folder / 'config.py', '--data-root', folder / 'nothing', '--work-dir', folder / 'n'
    )
    assert code == 2 and 'were not found' in error


IMAGENET = """
_base_ = 'mmdyn::imagenet/{name}_imagenet.py'

loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader, dataset=dict(
    _delete_=True, type='mmdyn.ClassFolder', data_root='{root}',
    data_prefix=dict(img_path='train'), pipeline={{{{_base_.train_pipeline}}}}))
val_dataloader = dict(**loader, dataset=dict(
    _delete_=True, type='mmdyn.ClassFolder', data_root='{root}',
    data_prefix=dict(img_path='val'), pipeline={{{{_base_.test_pipeline}}}}))
test_dataloader = val_dataloader
load_from = '{root}/dense.pth'
model = dict(num_classes=6, backbone=dict({backbone}))
train_cfg = dict(max_epochs=2, val_interval=1)
"""
NARROW = {
    'dynswin-t': 'embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2)',
    'dynlvvit-s': 'embed_dims=16, num_layers=8, out_indices=(7,), sparse_blocks=(2, 4, 6), '
    'num_heads=2, stem_channels=4',
}


@pytest.mark.parametrize('name', NARROW)
def test_an_imagenet_recipe_runs(name, folder):
    """Dense weights to start from and as teacher, frozen weights, mixing, averages, resuming."""
    text = IMAGENET.format(name=name, root=folder / 'data', backbone=NARROW[name])
    config, work = folder / f'{name}.py', folder / name
    config.write_text(text)
    model = MODELS.build(Config.fromfile(config).model)
    dense = {
        key.removeprefix('backbone.'): value
        for key, value in model.state_dict().items()
        if not is_new(key)
    }
    torch.save(dense, folder / 'data' / 'dense.pth')
    code, _, error = call('train', config, '--work-dir', work)
    assert code == 0, error
    trained = torch.load(work / 'epoch_2.pth', weights_only=False)
    for key, value in dense.items():  # frozen for five epochs
        if value.is_floating_point() and 'running' not in key:
            own = trained['state_dict'].get(f'backbone.{key}', trained['state_dict'].get(key))
            torch.testing.assert_close(own, value, msg=key)
    assert 'ema_state_dict' in trained
    argv = (config, '--work-dir', work, '--resume', '--cfg-options', 'train_cfg.max_epochs=3')
    code, _, error = call('train', *argv)
    assert code == 0 and (work / 'epoch_3.pth').exists(), error
