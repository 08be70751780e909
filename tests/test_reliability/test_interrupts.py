"""Ctrl-C at any moment: exit code 130 and one line, no partial files, no process left."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import cv2
import pytest
import torch
from PIL import Image

from mmdyn import cli
from tests.test_reliability.examples import count, some
from tests.test_reliability.trainings import Training
from tests.test_tools.segmentation import ROOT

RANDOM = count(1, 8)
SECTION = 'Ctrl-C'
LONG = '--rounds 1000000 --threads 1 --num-images 1 --device cpu'
FOREVER = 'train_cfg.max_iters=1000000 default_hooks.checkpoint.interval=1'
TRAIN = f'{{config}} --work-dir {{out}} --cfg-options {FOREVER}'
SAVING = 'mmengine.runner:Runner.save_checkpoint'
# Command line, and a function called once the tool is working.
TOOLS = {
    'train': (TRAIN, SAVING),
    'train with workers': (f'{TRAIN} train_dataloader.num_workers=2', SAVING),
    'test': ('{config} {checkpoint} --work-dir {out}', 'mmengine.evaluator:Evaluator.process'),
    'sweep': (
        f'{{config}} {{checkpoint}} --images 2 {LONG} --out {{out}}',
        'mmdyn.analysis.rows:measure_lines',
    ),
    'benchmark': (
        f'{{config}} {LONG} --out {{out}}/figures.json',
        'mmdyn.analysis.rows:measure_lines',
    ),
    'infer': (
        '{config} {checkpoint} {video} {pictures} --device cpu --labels --out {out}',
        'mmdyn.apis.writing:Writer._video',
    ),
    'app': ('{config} {checkpoint} --device cpu --threads 1', 'mmdyn.app.page:wait'),
}


def words(name, world, folder):
    names = {**world, 'out': folder / 'out'}
    return [word.format(**names) for word in TOOLS[name][0].split()]


def start(name, world, folder):
    temporary = folder / 'temporary'
    temporary.mkdir()
    return Training(
        *words(name, world, folder),
        log=folder / 'log.txt',
        tool=name.split()[0],
        at_work=(TOOLS[name][1], str(folder / 'at_work')),
        environment={'TMPDIR': str(temporary), 'MPLCONFIGDIR': str(folder)},
    )


def check(run, folder):
    """Check exit code, message and remains."""
    code, said = run.wait(60), run.log.read_text()
    assert (code, said.splitlines()[-1:]) == (cli.INTERRUPTED, ['interrupted']), said[-3000:]
    assert said.count('interrupted\n') == 1
    for word in ('Traceback', 'Exception ignored', 'Keyboard'):
        assert word not in said, said[-3000:]
    assert run.is_gone()
    check_files(folder)


def check_files(folder):
    """Check that all result files are readable, and no temporary file is left."""
    assert not list(folder.rglob('.part.*'))
    assert not list((folder / 'temporary').glob('mmdyn-*'))
    for path in (folder / 'out').rglob('*'):
        if path.suffix == '.pth':
            torch.load(path, weights_only=False)
        elif path.name in ('sweep.json', 'figures.json', 'results.json'):
            json.loads(path.read_text())
        elif path.suffix == '.png':
            with Image.open(path) as image:
                image.load()
        elif path.suffix == '.mp4':
            assert cv2.VideoCapture(str(path)).isOpened()


@pytest.mark.parametrize('name', TOOLS)
def test_at_work(world, tmp_path, name, figure):
    run = start(name, world, tmp_path)
    assert run.until((tmp_path / 'at_work').exists, 120), run.log.read_text()[-3000:]
    time.sleep(random.Random(name).uniform(0, 0.5) if name != 'test' else 0)
    before = time.monotonic()
    run.interrupt()
    check(run, tmp_path)
    figure(SECTION, f'{name}, at work: seconds to the end', f'{time.monotonic() - before:.1f}')


@pytest.mark.parametrize('name', some(TOOLS, 5))
def test_at_any_moment(world, tmp_path, name, figure):
    draw = random.Random(name)
    interrupted = 0
    for number in range(RANDOM):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = start(name, world, folder)
        assert run.until(run.log.exists)
        time.sleep(draw.uniform(0.1, 0.5 if name == 'test' else 3))
        if run.interrupt() and run.wait(60) != 0:
            check(run, folder)
            interrupted += 1
        else:  # a short test may have ended by then
            assert run.wait() == 0
    assert interrupted
    figure(SECTION, f'{name}, at random moments', f'{interrupted} times')


@pytest.mark.parametrize('moment', some(['inside', 'before renaming', 'after renaming'], 2))
def test_while_a_checkpoint_is_written(world, tmp_path, moment):
    marker = tmp_path / 'marker'
    arguments, log = words('train', world, tmp_path), tmp_path / 'log.txt'
    run = Training(*arguments, log=log, long_moment=(moment, 2, str(marker)))
    assert run.until(marker.exists), run.log.read_text()[-3000:]
    run.interrupt()
    check(run, tmp_path)


@pytest.mark.parametrize('name', some(['train with workers', 'infer', 'train'], 2))
def test_sigterm(world, tmp_path, name):
    run = start(name, world, tmp_path)
    assert run.until((tmp_path / 'at_work').exists, 120), run.log.read_text()[-3000:]
    checkpoints = (tmp_path / 'out').glob
    assert name == 'infer' or run.until(lambda: any(checkpoints('last_checkpoint')))
    os.kill(run.pid, signal.SIGTERM)
    code, said = run.wait(60), run.log.read_text()
    last = said.splitlines()[-1]
    assert (code, said.count('terminated')) == (cli.TERMINATED, 1), said[-3000:]
    assert last.startswith('terminated')
    for word in ('Traceback', 'Exception ignored', 'Keyboard'):
        assert word not in said, said[-3000:]
    if name != 'infer':
        named = (tmp_path / 'out' / 'last_checkpoint').read_text()
        done = int(named.rpartition('iter_')[2].removesuffix('.pth'))
        assert f'--resume continues from {named}' in last
        assert any(f'iteration {done + more}:' in last for more in range(-1, 3))
    assert run.is_gone()
    check_files(tmp_path)


@pytest.mark.slow
def test_the_command_by_name(world, tmp_path):
    out = tmp_path / 'out'
    arguments = words('train with workers', world, tmp_path)
    with (tmp_path / 'log.txt').open('w') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', 'mmdyn', 'train', *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    end = time.monotonic() + 120
    while not list(out.glob('*.pth')) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == cli.INTERRUPTED
    said = (tmp_path / 'log.txt').read_text()
    assert said.endswith('interrupted\n') and 'Traceback' not in said
    check_files(tmp_path)
