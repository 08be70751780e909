"""Choice of the checkpoint to resume from."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdyn.engine import config as edit
from mmdyn.engine import prepare
from mmdyn.engine.resuming import latest_checkpoint
from mmdyn.guard import checkpoints_as_data
from tests.test_engine.toy import toy_config, train


class Foreign:
    """An object that a safe load refuses."""


def write(folder: Path, *steps: int, template: str = 'iter_{}.pth', begin: int = 0) -> None:
    """Write checkpoints one second apart, and ``last_checkpoint``."""
    folder.mkdir(parents=True, exist_ok=True)
    for second, step in enumerate(steps):
        path = folder / template.format(step)
        torch.save(dict(state_dict={}, meta=dict(iter=step)), path)
        os.utime(path, (begin + second, begin + second))
    (folder / 'last_checkpoint').write_text(str(path))


def found(folder: Path, **hook) -> tuple[str | None, int]:
    """The checkpoint's path in the folder, and the number of skipped ones."""
    checkpoint = dict(type='CheckpointHook', by_epoch=False, **hook)
    cfg = Config(dict(work_dir=str(folder), default_hooks=dict(checkpoint=checkpoint)))
    latest, passed_over = latest_checkpoint(cfg)
    return latest and os.path.relpath(latest, folder), len(passed_over)


def cut(path: Path) -> None:
    """Truncate a file to half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


NAMED = 'last_checkpoint'


@pytest.mark.parametrize(
    ('damage', 'expected'),
    [
        (lambda work: None, ('iter_12.pth', 0)),
        (lambda work: cut(work / 'iter_12.pth'), ('iter_8.pth', 1)),
        (lambda work: (work / 'iter_12.pth').write_bytes(b''), ('iter_8.pth', 1)),
        (lambda work: (work / 'iter_12.pth').unlink(), ('iter_8.pth', 1)),
        (lambda work: (work / NAMED).write_text(''), ('iter_12.pth', 0)),
        (lambda work: (work / NAMED).unlink(), ('iter_12.pth', 0)),
        (lambda work: (work / NAMED).write_bytes(b'\xff\xfe'), ('iter_12.pth', 0)),
        (lambda work: [cut(work / f'iter_{step}.pth') for step in (4, 8, 12)], (None, 3)),
        # As in a copied folder, where this one was copied last.
        (lambda work: os.utime(work / 'iter_4.pth', (100, 100)), ('iter_12.pth', 0)),
        # Higher numbers are of an earlier training, used only without others.
        (lambda work: write(work, 4, begin=10), ('iter_4.pth', 0)),
        (lambda work: [write(work, 4, begin=10), cut(work / 'iter_4.pth')], ('iter_12.pth', 1)),
    ],
)
def test_the_latest_whole_one_counts(tmp_path, damage, expected):
    write(tmp_path, 4, 8, 12)
    (tmp_path / 'best_mIoU_iter_20.pth').touch()
    (tmp_path / 'iter_16.pth.bak').touch()
    damage(tmp_path)
    assert found(tmp_path) == expected


@pytest.mark.parametrize('template', ['step{}.ckpt', 'latest.pth'])
def test_the_hooks_own_names_and_folder_count(tmp_path, template):
    work, out = tmp_path / 'work', tmp_path / 'out'
    write(out / 'work', 1, 2, template=template)
    work.mkdir()
    latest = f'../out/work/{template.format(2)}'
    assert found(work, out_dir=str(out), filename_tmpl=template) == (latest, 0)
    (work / NAMED).write_text('s3://bucket/work/iter_9.pth')
    cfg = Config(dict(work_dir=str(work)))
    assert latest_checkpoint(cfg) == ('s3://bucket/work/iter_9.pth', [])


@pytest.mark.parametrize('trust', [False, True])
def test_the_config_in_an_old_checkpoint_is_run_only_if_trusted(tmp_path, monkeypatch, trust):
    monkeypatch.setattr(Config, 'pretty_text', property(lambda _: ''))
    cfg = toy_config(tmp_path, by_epoch=False, length=2, sampler='InfiniteSampler')
    train(cfg, f'first-{tmp_path}')
    path, canary = tmp_path / 'iter_2.pth', tmp_path / 'canary'
    content = torch.load(path, weights_only=False)
    content['meta']['config'] = f'a = open({str(canary)!r}, "w").close()'
    content['meta']['dataset_meta'] = None
    torch.save(content, path)
    resumed = toy_config(tmp_path, by_epoch=False, length=4, sampler='InfiniteSampler')
    resumed.merge_from_dict(dict(resume=True, load_from=str(path)))
    with checkpoints_as_data(trust):
        _, losses = train(resumed, f'resumed-{tmp_path}')
    assert set(losses) == {2, 3}
    assert canary.exists() == trust


def test_processes_that_found_different_checkpoints_do_not_begin(monkeypatch):
    cfg = Config(dict(resume=True, load_from='there/iter_4.pth', work_dir='there'))
    monkeypatch.setattr(prepare, 'get_world_size', lambda: 2)
    monkeypatch.setattr(prepare, 'all_gather_object', lambda own: [own, own])
    prepare._check_processes_agree(cfg)
    monkeypatch.setattr(prepare, 'all_gather_object', lambda own: [own, 'starts with None'])
    with pytest.raises(ValueError, match=r'iter_4\.pth.*None'):
        prepare._check_processes_agree(cfg)


def test_one_that_would_run_code_is_refused_and_not_passed_over(tmp_path):
    write(tmp_path, 4, 8)
    torch.save(dict(state_dict={}, other=Foreign()), tmp_path / 'iter_8.pth')
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        found(tmp_path)
    cfg = Config(dict(work_dir=str(tmp_path)))
    assert latest_checkpoint(cfg, trust=True)[0] == str(tmp_path / 'iter_8.pth')


def test_the_log_says_what_was_passed_over(tmp_path):
    write(tmp_path, 4, 8)
    cut(tmp_path / 'iter_8.pth')
    hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False))
    cfg = Config(dict(work_dir=str(tmp_path), default_hooks=hooks))
    first, second = edit.set_resume(cfg, 'auto').splitlines()
    assert f'skipped: checkpoint {tmp_path / "iter_8.pth"} is damaged' in first
    assert second == f'--resume: resuming from {tmp_path / "iter_4.pth"}.'
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'iter_4.pth'))
