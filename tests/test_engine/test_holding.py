import os

import pytest
from mmengine.config import Config

from mmdyn.engine.holding import LOCK, hold
from tests.test_reliability.forks import in_fork


def training(folder, launcher='none', **hook):
    return Config(
        dict(work_dir=str(folder), launcher=launcher, default_hooks=dict(checkpoint=hook))
    )


def held_elsewhere(cfg):
    """Message to another process, None if it may train there."""
    try:
        hold(cfg)
    except ValueError as error:
        return str(error)
    return None


def test_a_folder_is_one_process_own_until_it_ends(tmp_path):
    folder = tmp_path / 'work'
    assert in_fork(held_elsewhere, training(folder)) is None  # and exits
    hold(training(folder))
    hold(training(folder))
    said = in_fork(held_elsewhere, training(folder))
    assert str(folder) in said and f'process {os.getpid()} on ' in said
    link = tmp_path / 'link'
    link.symlink_to(folder)
    assert in_fork(held_elsewhere, training(link)) is not None
    assert in_fork(held_elsewhere, training(tmp_path / 'other')) is None


def test_where_checkpoints_go_is_held_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hold(training(tmp_path / 'a' / 'work', out_dir=str(tmp_path / 'all')))
    other = training(tmp_path / 'b' / 'work', out_dir=str(tmp_path / 'all'))
    assert str(tmp_path / 'all' / 'work') in in_fork(held_elsewhere, other)
    hold(training(tmp_path / 'c', out_dir='s3://bucket/all'))
    assert not list(tmp_path.glob('s3*'))


@pytest.mark.parametrize(('rank', 'holds'), [('0', True), ('1', False)])
def test_the_first_process_of_a_run_holds(tmp_path, monkeypatch, rank, holds):
    monkeypatch.setenv('RANK', rank)
    hold(training(tmp_path, 'pytorch'))
    assert (tmp_path / LOCK).exists() == holds


def test_a_file_system_without_locks_is_trained_on(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr('fcntl.lockf', without)
    hold(training(tmp_path))
