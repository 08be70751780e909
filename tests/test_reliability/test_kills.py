"""kill -9 at any moment: a resumed training is bit-exact."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdyn import cli
from mmdyn.analysis import demo_models
from tests.test_reliability.examples import count
from tests.test_reliability.trainings import Place, read_losses

KILLS = count(4, 20)
MOMENTS = ('inside', 'before renaming', 'after renaming', 'random')
ITERATIONS = 4 * KILLS  # so that every kill comes before the end
SECTION = 'Trainings that are killed'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The uninterrupted training: its losses and final weights."""
    place = Place(tmp_path_factory.mktemp('whole') / 'place', ITERATIONS)
    assert place.train().wait() == 0, place.log.read_text()[-3000:]
    losses = dict(read_losses(place.losses))
    assert sorted(losses) == list(range(ITERATIONS))
    return losses, place.checkpoints()[f'iter_{ITERATIONS}.pth']['state_dict']


def kill_once(place: Place, moment: str, draw: random.Random) -> None:
    """Resume the training and kill it."""
    if moment == 'random':
        due = len(read_losses(place.losses)) + draw.randint(0, 3)
        training = place.train()
        assert training.until(lambda: len(read_losses(place.losses)) >= due)
        time.sleep(draw.uniform(0, 0.3))  # during start-up or an iteration
    else:
        marker = place.folder / 'marker'
        marker.unlink(missing_ok=True)
        training = place.train(long_moment=(moment, draw.randint(1, 3), str(marker)))
        assert training.until(marker.exists), place.log.read_text()[-3000:]
    training.kill()
    assert training.wait() == -signal.SIGKILL


def test_a_killed_training_goes_on_as_if_it_never_was(tmp_path, whole, figure):
    losses, weights = whole
    place = Place(tmp_path / 'killed', ITERATIONS)
    draw = random.Random(0)
    for number in range(KILLS):
        kill_once(place, MOMENTS[number % len(MOMENTS)], draw)
        place.checkpoints()  # raises if one is damaged
        note = place.work_dir / 'last_checkpoint'
        assert not note.exists() or Path(note.read_text()).is_file()
    assert place.train().wait() == 0, place.log.read_text()[-3000:]

    trained = read_losses(place.losses)
    assert len(trained) > len(dict(trained)) == ITERATIONS  # some were trained again, ...
    assert all(losses[iteration] == loss for iteration, loss in trained)  # ... to the same
    left = place.checkpoints()
    last = left[f'iter_{ITERATIONS}.pth']['state_dict']
    assert all(torch.equal(last[key], value) for key, value in weights.items())
    regular = {name for name in left if not name.startswith('best')}
    assert regular == {f'iter_{ITERATIONS - 1}.pth', f'iter_{ITERATIONS}.pth'}
    assert not list(place.work_dir.rglob('.part.*'))
    figure(SECTION, 'kill -9 while training or writing a checkpoint', f'{KILLS} times')
    figure(SECTION, 'of these, resumed', KILLS)
    figure(SECTION, 'checkpoints found damaged after a kill', 0)
    figure(SECTION, 'losses compared bit by bit with the uninterrupted run', len(trained))


def test_a_second_training_in_the_same_folder_is_refused(tmp_path):
    place, marker = Place(tmp_path / 'place', 2), tmp_path / 'marker'
    workers = ('--cfg-options', 'train_dataloader.num_workers=2')
    first = place.train(*workers, long_moment=('inside', 1, str(marker)))
    assert first.until(marker.exists), place.log.read_text()[-3000:]
    place.log = tmp_path / 'second.txt'
    assert place.train().wait() == cli.BAD_INPUT
    (message,) = [line for line in place.log.read_text().splitlines() if line.startswith('error:')]
    assert str(place.work_dir) in message and f'process {first.pid} ' in message
    first.kill()
    assert place.train().wait() == 0  # immediately, even if workers are still alive


def test_what_replaces_a_training_is_not_taken_for_it(tmp_path, monkeypatch):
    class Killed:
        def register_hook(self, hook):
            raise KeyboardInterrupt

    (tmp_path / 'trained.txt').write_text('another training')
    cfg = Config(dict(train_cfg=dict(max_iters=2)))
    monkeypatch.setattr(demo_models, 'prepare_training', lambda *_, **__: (cfg, []))
    monkeypatch.setattr(demo_models, 'build_runner', lambda *_: Killed())
    with pytest.raises(KeyboardInterrupt):
        demo_models.train('any.py', tmp_path, seed=0)
    assert not (tmp_path / 'trained.txt').exists()
