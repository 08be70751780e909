"""mmdyn.CheckpointHook: files are removed after their replacement is written."""

import errno
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import LocalBackend

from mmdyn.converters.checkpoint_files import check_checkpoint
from mmdyn.engine import config as edit
from mmdyn.engine.hooks import CheckpointHook
from tests.test_engine.toy import QuickRunner, toy_config, train

OURS = 'mmdyn.CheckpointHook'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', property(lambda _: ''))
    monkeypatch.setattr('time.sleep', lambda _: None)


def config(folder: Path, length: int = 4, **hook) -> Config:
    """A toy training that validates and saves every two iterations."""
    cfg = toy_config(folder, by_epoch=False, length=length, sampler='InfiniteSampler')
    cfg.default_hooks.checkpoint.update(dict(type=OURS) | hook)
    return cfg


def left_names(folder: Path) -> set[str]:
    """Names of checkpoints and temporary files."""
    return {p.name for p in folder.iterdir() if p.suffix == '.pth'}


def left(folder: Path) -> set[str]:
    """Names of the checkpoints, all of which must be readable."""
    names = left_names(folder)
    for name in names:
        torch.load(folder / name, weights_only=False)
    return names


@pytest.mark.parametrize(
    ('hook', 'names'),
    [
        (dict(save_best=None), {'iter_2.pth', 'iter_4.pth', 'iter_6.pth'}),
        (dict(save_best=None, max_keep_ckpts=2), {'iter_4.pth', 'iter_6.pth'}),
        (dict(save_best=None, max_keep_ckpts=1), {'iter_6.pth'}),
        (dict(save_best='acc', max_keep_ckpts=1), {'iter_6.pth', 'best_acc_iter_2.pth'}),
        (dict(rule='less', max_keep_ckpts=1), {'iter_6.pth', 'best_acc_iter_6.pth'}),
    ],
)
def test_what_is_left_is_what_mmengine_leaves(tmp_path, hook, names):
    for kind in (OURS, 'CheckpointHook'):
        folder = tmp_path / kind
        train(config(folder, 6, **{**hook, 'type': kind}), f'{kind}-{tmp_path}')
        assert left(folder) == names
        assert (folder / 'last_checkpoint').read_text() == str(folder / 'iter_6.pth')


@pytest.mark.parametrize(
    ('written', 'hook', 'names'),
    [
        pytest.param(2, dict(save_best=None, max_keep_ckpts=1), {'iter_2.pth'}, id='the next'),
        # Written in this order: iter_2, best_2, iter_2 again, iter_4, best_4.
        pytest.param(
            5, dict(rule='less'), {'iter_2.pth', 'iter_4.pth', 'best_acc_iter_2.pth'}, id='the best'
        ),
    ],
)
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, written, hook, names):
    put, count = LocalBackend.put, [0]

    def full(self, content, path):
        count[0] += 1
        put(self, content[: len(content) // 2] if count[0] == written else content, path)
        if count[0] == written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalBackend, 'put', full)
    with pytest.raises(OSError, match=r'No space left on device: .*_4\.pth'):
        train(config(tmp_path, **hook), f'full-{tmp_path}')
    assert left(tmp_path) == names


def test_a_resumed_training_removes_what_the_killed_one_did_not_come_to(tmp_path, monkeypatch):
    hook = dict(save_best=None, max_keep_ckpts=1)
    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, 'remove', lambda *_: None)  # killed before
        train(config(tmp_path, 4, **hook), f'killed-{tmp_path}')
    (tmp_path / '.part.1.iter_6.pth').touch()
    assert left_names(tmp_path) == {'.part.1.iter_6.pth', 'iter_2.pth', 'iter_4.pth'}
    resumed = config(tmp_path, 6, **hook)
    resumed.merge_from_dict(dict(resume=True, load_from=str(tmp_path / 'iter_4.pth')))
    train(resumed, f'resumed-{tmp_path}')
    assert left(tmp_path) == {'iter_6.pth'}


def test_the_best_of_the_training_it_goes_on_from_stays_there(tmp_path):
    train(config(tmp_path / 'first', 2, rule='less'), f'first-{tmp_path}')
    resumed = config(tmp_path / 'second', 4, rule='less')
    resumed.merge_from_dict(dict(resume=True, load_from=str(tmp_path / 'first' / 'iter_2.pth')))
    train(resumed, f'second-{tmp_path}')
    assert left(tmp_path / 'first') == {'iter_2.pth', 'best_acc_iter_2.pth'}
    assert left(tmp_path / 'second') == {'iter_4.pth', 'best_acc_iter_4.pth'}


def test_a_model_can_be_validated_without_a_training(tmp_path):
    cfg = config(tmp_path, save_best=None)
    cfg.experiment_name = f'val-{tmp_path}'
    assert QuickRunner.from_cfg(cfg).val()
    assert left(tmp_path) == set()


def test_parts_of_configs_are_saved_as_data(tmp_path):
    metainfo = ConfigDict(classes=('a',), more=[dict(b=1)])
    content = dict(meta=OrderedDict(dataset_meta=metainfo), state_dict={})
    CheckpointHook(interval=1).before_save_checkpoint(None, content)
    torch.save(content, tmp_path / 'some.pth')
    check_checkpoint(tmp_path / 'some.pth')
    assert content['meta'] == dict(dataset_meta=metainfo)


def test_a_checkpoint_elsewhere_stays_there(tmp_path):
    (tmp_path / 'large').mkdir()
    (tmp_path / 'iter_2.pth').symlink_to(tmp_path / 'large' / 'iter_2.pth')
    train(config(tmp_path, 2, save_best=None), f'link-{tmp_path}')
    assert (tmp_path / 'iter_2.pth').is_symlink()
    assert left(tmp_path) == left(tmp_path / 'large') == {'iter_2.pth'}


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        *(
            (dict(checkpoint=dict(type=kind, interval=3)), dict(type=OURS, interval=3))
            for kind in ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook.__mro__[1])
        ),
        ({}, dict(type=OURS)),
        (None, dict(type=OURS)),
        (dict(checkpoint=None), None),
        (dict(checkpoint=dict(type='Mine')), dict(type='Mine')),
    ],
)
def test_the_tools_put_it_in_place_of_mmengines_alone(given, expected):
    custom = [dict(type='Mine'), dict(type='CheckpointHook')]
    cfg = Config(dict(default_hooks=given, custom_hooks=custom))
    edit.set_checkpoint_hook(cfg)
    assert cfg.default_hooks.checkpoint == expected
    assert [hook.type for hook in cfg.custom_hooks] == ['Mine', OURS]


def test_strategies_that_write_folders_keep_mmengines():
    hooks = dict(checkpoint=dict(type='CheckpointHook'))
    cfg = Config(dict(strategy=dict(type='DeepSpeedStrategy'), default_hooks=hooks))
    edit.set_checkpoint_hook(cfg)
    assert cfg.default_hooks.checkpoint.type == 'CheckpointHook'
