"""If one process of a distributed run dies or hangs, the others end with a message."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.test_reliability.trainings import Place, Training, read_losses, read_processes
from tests.test_tools.segmentation import ROOT

SECTION = 'A process of a distributed run that dies or hangs'
TIMEOUT = 5
ITERATIONS = 5000
MANY = ('--cfg-options', f'env_cfg.dist_cfg.timeout={TIMEOUT}', 'train_cfg.val_interval=9999')
MANY = (*MANY, 'default_hooks.checkpoint.interval=20')


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def two_ranks(place: Place) -> list[Training]:
    """Both processes of a training, without a launcher that monitors them."""
    shared = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    arguments = (place.config, '--work-dir', place.work_dir, '--launcher', 'pytorch', *MANY)
    return [
        Training(
            *arguments,
            log=place.folder / f'rank{rank}.txt',
            environment=dict(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
        )
        for rank in (0, 1)
    ]


def trains(place: Place) -> bool:
    """Whether both processes have trained some iterations."""
    return len(read_processes(place.losses)) == 2 and len(read_losses(place.losses)) >= 6


@pytest.mark.slow
@pytest.mark.parametrize('lost', [0, 1])
@pytest.mark.parametrize(
    ('number', 'what', 'bound'),
    [
        pytest.param(signal.SIGKILL, 'dies', 10, id='dies'),
        pytest.param(signal.SIGSTOP, 'hangs', TIMEOUT + 10, id='hangs'),
    ],
)
def test_the_other_ends_with_a_message(tmp_path, figure, lost, number, what, bound):
    place = Place(tmp_path / 'place', ITERATIONS)
    ranks = two_ranks(place)
    try:
        assert ranks[0].until(lambda: trains(place)), ranks[0].log.read_text()[-3000:]
        os.kill(ranks[lost].pid, number)
        start = time.monotonic()
        code = ranks[1 - lost].wait(60)
        seconds = time.monotonic() - start
    finally:
        for rank in ranks:
            rank.kill()
    said = ranks[1 - lost].log.read_text()
    assert code == 1, said[-3000:]
    assert seconds < bound
    assert 'another process died or hangs' in said, said[-3000:]
    figure(
        SECTION,
        f'rank {lost} {what}: the other ended after',
        f'{seconds:.1f} s (at most {bound} s)',
    )


@pytest.mark.slow
def test_the_launcher_ends_all_and_says_which_died(tmp_path, figure):
    place = Place(tmp_path / 'place', ITERATIONS)
    script = ROOT / 'tools' / 'dist_train.sh'
    command = ['bash', script, place.config, '2', '--work-dir', place.work_dir, *MANY]
    path = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    variables = dict(OMP_NUM_THREADS='1', PYTHON=sys.executable, PORT=str(free_port()))
    with place.log.open('w') as log:
        launcher = subprocess.Popen(
            [str(one) for one in command],
            stdout=log,
            stderr=log,
            env={**os.environ, **variables, 'PYTHONPATH': path},
        )
    try:
        end = time.monotonic() + 120
        while not trains(place) and launcher.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert trains(place), place.log.read_text()[-3000:]
        first, second = sorted(read_processes(place.losses))
        os.kill(second, signal.SIGKILL)
        start = time.monotonic()
        code = launcher.wait(60)
        seconds = time.monotonic() - start
    finally:
        launcher.kill()
    said = place.log.read_text()
    assert code == 1
    assert f'Signal 9 (SIGKILL) received by PID {second}' in said, said[-3000:]
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    figure(SECTION, 'tools/dist_train.sh, one process dies: all ended after', f'{seconds:.1f} s')
