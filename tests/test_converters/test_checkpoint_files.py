"""Harmless checkpoints are read; those that would run code are refused."""

import argparse
import collections
import contextlib
import datetime
import functools
import io
import os
import pathlib
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OneCycleParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader
from mmengine.runner import load_checkpoint as mmengines_load_checkpoint

from mmdyn.converters import checkpoint_files
from mmdyn.converters.checkpoint_files import (
    check_checkpoint,
    read_checkpoint,
)
from mmdyn.errors import DamagedCheckpointError
from mmdyn.guard import checkpoints_as_data, load_checkpoint
from tests.test_reliability.forging import CODE, Calls, entries, named, saved, text, with_pickle
from tests.test_reliability.forging import zipped as zip_file
from tests.torch_line import of_the_maintained_line

OLD_FORMAT = pytest.param(False, id='old format')


@pytest.fixture(params=['this torch', 'torch before 2.6'])
def line(request, monkeypatch):
    """Both readers: torch's restricted unpickler, and ours for older versions of torch."""
    if request.param != 'this torch':
        monkeypatch.setattr(checkpoint_files, '_can_allow', lambda: False)
    elif not checkpoint_files._can_allow():
        pytest.skip('this torch is one before 2.6')
    return request.param


def read(content: bytes, folder: Path):
    (folder / 'some.pth').write_bytes(content)
    return read_checkpoint(folder / 'some.pth')


def same(value, other) -> bool:
    """Whether two contents are equal, including types."""
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        return list(value) == list(other) and all(same(value[k], other[k]) for k in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, np.ndarray):
        return value.dtype == other.dtype and np.array_equal(value, other)
    if isinstance(value, torch.Tensor):
        return value.dtype == other.dtype and bool(torch.all(value.to_dense() == other.to_dense()))
    if isinstance(value, HistoryBuffer):
        return same(value.data, other.data) and value.max_length == other.max_length
    if isinstance(value, (MessageHub, argparse.Namespace)):
        return same(vars(value), vars(other))
    return value == other or value != value


# ---------------------------------------------------------------- harmless files


def training_checkpoint():
    """A checkpoint of a training with mmengine."""
    buffer = HistoryBuffer()
    buffer.update(1.0)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return dict(
        meta=dict(epoch=0, iter=2, palette=np.zeros((2, 3), np.uint8), score=np.float64(0.5)),
        message_hub=dict(
            log_scalars=collections.OrderedDict(loss=buffer),
            runtime_info=collections.OrderedDict(iter=1, best=np.float32(1)),
        ),
        state_dict=layer.state_dict(),
        ema_state_dict=layer.state_dict(),
        optimizer=optimizer.state_dict(),
    )


def mmcv_1_meta():
    return dict(
        meta=dict(
            env_info='sys.platform: linux', config='a = 1\n', seed=None, mmcv_version='1.7.1',
            time='Mon', epoch=1, iter=9, hook_msgs={}, CLASSES=('a', 'b'), PALETTE=[[0] * 3],
        ),
        state_dict=collections.OrderedDict(a=torch.ones(1)),
        optimizer=dict(state={0: dict(momentum_buffer=None)}, param_groups=[dict(params=[0])]),
    )  # fmt: skip


PLAIN = {
    'arrays': lambda: [
        np.arange(6).reshape(2, 3).T, np.zeros((2, 0)), np.array(['a', 'bc']),
        np.array([b'a']), np.array([1 + 2j]), np.array(['2020-01-01'], 'M8[D]'), np.array(True),
        *(np.ones(2, kind) for kind in ('e', 'f', 'd', 'g', 'b', 'B', 'h', 'H', 'l', 'L', 'F')),
    ],
    'scalars': lambda: [
        np.float16(1), np.longdouble(1), np.int64(-3), np.uint8(3), np.bool_(True), np.str_('a'),
        np.bytes_(b'a'), np.complex64(1j), np.datetime64('2020-01-01'), np.timedelta64(3, 's'),
        np.datetime64('NaT'), np.str_(''), np.float64('nan'),
    ],
    'dtypes': lambda: [np.dtype('f4'), np.dtype('>u2'), np.dtype('M8[3s]'), np.float32, np.bool_],
    'RNG state': lambda: [np.random.get_state(), random.getstate(), torch.get_rng_state()],
    'containers': lambda: [
        collections.OrderedDict(a=1), collections.Counter('aab'), {1, 2}, frozenset([(1, 2)]),
        collections.defaultdict(list, a=[np.ones(1)]), collections.defaultdict(None, a=1),
        argparse.Namespace(lr=0.1, sizes=[np.ones(2)]), (1, (np.ones(2), [np.ones(1)])),
        ConfigDict(model=dict(type='A', sizes=(1, 2)), hooks=[dict(mean=np.float64(1))]),
    ],
    'times and paths': lambda: [
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc), datetime.date(2020, 1, 2),
        datetime.time(3), datetime.timedelta(1), pathlib.Path('a/b'),
        pathlib.PureWindowsPath('c:/b'), pathlib.PurePosixPath('a'),
    ],
    'values': lambda: [
        b'', b'ab', bytearray(b'ab'), bytearray(), slice(1, 2), range(3), 1 + 2j, 2**70, -(2**40),
        float('inf'), None, torch.float16, torch.device('cpu'), torch.Size([1]), int,
    ],
    'tensors': lambda: [
        torch.eye(2).to_sparse(), torch.nn.Parameter(torch.ones(2)), torch.ones(2, 3).t(),
        torch.zeros(1).expand(10**7), torch.ones(2, dtype=torch.bfloat16),
    ],
    'message hub': lambda: MessageHub('some'),
    'anneal': lambda: OneCycleParamScheduler._annealing_cos,
    'a training': training_checkpoint,
    'mmcv 1': mmcv_1_meta,
}  # fmt: skip


@pytest.mark.parametrize('zipped', [True, OLD_FORMAT])
@pytest.mark.parametrize('name', PLAIN)
def test_data_are_read_as_they_were(tmp_path, line, name, zipped):
    content = PLAIN[name]()
    file = saved(content, zipped)
    if zipped or line == 'this torch':
        assert same(read(file, tmp_path), content)
        return
    with pytest.raises(ValueError, match=r'use torch 2\.6.*--trust-checkpoint'):
        read(file, tmp_path)


@pytest.mark.filterwarnings('ignore')
@of_the_maintained_line
def test_quantised_and_meta_tensors_are_read(tmp_path, line):
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.qint8)
    made, meta = read(saved([quantised, torch.zeros(3, device='meta')]), tmp_path)
    assert made.dequantize().tolist() == [1.0] * 3
    assert meta.is_meta and meta.shape == (3,)


def test_what_numpy_1_wrote_is_read(line):
    content = read_checkpoint(Path(__file__).with_name('numpy1_checkpoint.pth'))
    buffer = content['message_hub']['log_scalars']['train/loss']
    assert same(content['meta'], dict(epoch=1, iter=5, seed=0, best=np.float64(0.5)))
    assert type(buffer) is HistoryBuffer and buffer.mean() == 2.0 and buffer.current() == 4.0
    assert buffer.statistics('max') == 4.0


@pytest.mark.parametrize('name', ['arrays', 'scalars', 'RNG state', 'a training'])
def test_both_spellings_of_numpy_are_read(tmp_path, line, name):
    content = PLAIN[name]()
    parts = entries(saved(content))
    pickled = parts['archive/data.pkl']
    ours, other = b'cnumpy._core.', b'cnumpy.core.'
    ours, other = (ours, other) if ours in pickled else (other, ours)
    assert ours in pickled
    parts['archive/data.pkl'] = pickled.replace(ours, other)
    assert same(read(zip_file(parts), tmp_path), content)


def schedulers():
    """Every scheduler of mmengine, and the state it saves."""
    special = dict(
        OneCycle=dict(eta_max=0.1, total_steps=9), MultiStep=dict(milestones=[2]),
        Step=dict(step_size=2), Exponential=dict(gamma=0.9), CosineAnnealing=dict(T_max=3),
        CosineRestart=dict(periods=[2], eta_min=0.0), ReduceOnPlateau=dict(monitor='loss'),
    )  # fmt: skip
    for name, kind in PARAM_SCHEDULERS.module_dict.items():
        family = name.removesuffix('ParamScheduler').removesuffix('Momentum').removesuffix('LR')
        settings = special.get(family, {})
        if name.endswith('ParamScheduler'):
            settings = dict(param_name='lr', **settings)
        yield name, functools.partial(kind, **settings)


@pytest.mark.filterwarnings('ignore')
def test_every_scheduler_of_mmengine_is_read(tmp_path, line):
    states = {}
    for name, make in schedulers():
        weight = torch.nn.Parameter(torch.ones(1))
        scheduler = make(torch.optim.SGD([weight], lr=0.1, momentum=0.9))
        states[name] = scheduler.state_dict()
    assert len(states) >= 24
    assert same(read(saved(states), tmp_path), states)


# ---------------------------------------------------------------- malicious files


@pytest.mark.parametrize('name', CODE)
def test_code_is_refused_and_does_not_run(tmp_path, line, name):
    canary = tmp_path / 'canary'
    with pytest.raises(ValueError, match=r'some\.pth'):
        read(CODE[name](canary), tmp_path)
    with pytest.raises(ValueError, match=r'some\.pth'):
        check_checkpoint(tmp_path / 'some.pth')
    assert not canary.exists()
    assert HistoryBuffer.mean != 'harm'


def test_a_refusal_says_what_and_which_flag(tmp_path, line):
    with pytest.raises(
        ValueError, match=r'more than data \(\w+\.mkdir\).*--trust-checkpoint'
    ) as end:
        read(saved(dict(state_dict={}, extra=Calls(os.mkdir, 'x'))), tmp_path)
    assert str(tmp_path / 'some.pth') in str(end.value)
    assert not isinstance(end.value, DamagedCheckpointError)


def test_what_is_trusted_is_read(tmp_path, line):
    canary = tmp_path / 'canary'
    torch.save(dict(extra=Calls(os.mkdir, str(canary))), tmp_path / 'some.pth')
    check_checkpoint(tmp_path / 'some.pth', trust=True)
    assert not canary.exists()
    read_checkpoint(tmp_path / 'some.pth', trust=True)
    assert canary.exists()


def test_names_of_a_file_are_shown_escaped_and_short(tmp_path, line):
    name = 'evil\x1b[31m\x07' + 'x' * 5000
    for program in (named(name, 'f') + b')R.', named('numpy', 'dtype') + text(name) + b'\x85R.'):
        with pytest.raises(ValueError, match='evil') as end:
            read(with_pickle(program), tmp_path)
        assert str(end.value).isprintable() and len(str(end.value)) < 1000


def test_a_log_buffers_state_changes_no_other(tmp_path, line):
    before = dict(HistoryBuffer._statistics_methods)
    state = b'}' + text('statistics_methods') + b'}' + text('mean') + text('harm') + b'ss'
    made = named('mmengine.logging.history_buffer', 'HistoryBuffer') + b')\x81' + state + b'b.'
    assert type(read(with_pickle(made), tmp_path)) is HistoryBuffer
    assert HistoryBuffer._statistics_methods == before


@pytest.mark.parametrize('owner', ['settings', 'state'])
def test_special_attributes_are_refused(tmp_path, line, owner):
    """Through which numpy, for example, reads memory."""
    told = b'}' + text('__array_interface__') + b'}s'
    made = named('argparse', 'Namespace') + b')\x81' + told + b'b.'
    if owner == 'settings':
        made = named('mmengine.config.config', 'ConfigDict') + told + b'\x85R.'
    with pytest.raises(ValueError, match='__array_interface__'):
        read(with_pickle(b']' + made[:-1] + b'a.'), tmp_path)


@of_the_maintained_line
def test_torchs_own_list_of_names_is_neither_used_nor_changed(tmp_path):
    with torch.serialization.safe_globals([os.mkdir, getattr]):
        before = set(torch.serialization.get_safe_globals())
        for content in (
            Calls(os.mkdir, str(tmp_path / 'canary')),
            Calls(getattr, HistoryBuffer, '__init__'),
        ):
            with pytest.raises(ValueError, match='more than data'):
                read(saved(content), tmp_path)
        assert set(torch.serialization.get_safe_globals()) == before
    assert not (tmp_path / 'canary').exists()


def test_programs_of_torchscript_are_refused(tmp_path, line):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / 'some.pth'))
    with pytest.raises(ValueError, match=r'TorchScript.*--trust-checkpoint'):
        read_checkpoint(tmp_path / 'some.pth')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('content', 'how'),
    [
        # Ours replaces torch's unpickler before 2.6.
        pytest.param(dict(a=1), dict(pickle_protocol=4), marks=of_the_maintained_line),
        (np.array([None]), {}),
        (np.zeros(1, 'i4,f4'), {}),
    ],
    ids=['protocol 4', 'array of objects', 'records'],
)
def test_what_is_unusual_is_not_called_damaged_and_read_if_trusted(tmp_path, content, how):
    torch.save(content, tmp_path / 'some.pth', **how)
    with pytest.raises(ValueError, match='--trust-checkpoint') as refusal:
        check_checkpoint(tmp_path / 'some.pth')
    assert type(refusal.value) is ValueError
    read_checkpoint(tmp_path / 'some.pth', trust=True)


# ---------------------------------------------------------------- invalid files


def test_damaged_files_are_named(tmp_path, line):
    whole = saved(training_checkpoint())
    for name, content in dict(cut=whole[: len(whole) // 2], empty=b'', text=b'hello ' * 99).items():
        damaged = tmp_path / f'{name}.pth'
        damaged.write_bytes(content)
        for trust in (False, True):
            with pytest.raises(DamagedCheckpointError, match=rf'{name}\.pth is damaged'):
                read_checkpoint(damaged, trust)
    with pytest.raises(DamagedCheckpointError, match=r'cut\.pth is damaged'):
        check_checkpoint(tmp_path / 'cut.pth', trust=True)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'fifo.pth')
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'fifo.pth')
    (tmp_path / 'loop.pth').symlink_to(tmp_path / 'loop.pth')
    (tmp_path / 'lost.pth').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'folder.pth').mkdir()
    names = ('fifo.pth', 'link.pth', 'loop.pth', 'lost.pth', 'folder.pth', 'gone.pth', '/dev/zero')
    for name in names:
        for how in (check_checkpoint, read_checkpoint, load_checkpoint):
            with pytest.raises(FileNotFoundError, match='does not exist or is no file'):
                how(str(tmp_path / name))
    for name in ('x' * 5000, 'a\0b.pth'):
        with pytest.raises((OSError, ValueError)):
            load_checkpoint(str(tmp_path / name))


def test_a_path_that_changes_meanwhile_is_opened_once(tmp_path):
    """If a link alternates between two files, each reading sees one of them only."""
    for name, size in (('a', 10), ('b', 1000)):
        torch.save({name: torch.ones(size)}, tmp_path / f'{name}.pth')
    link, spare = tmp_path / 'link.pth', tmp_path / 'spare'
    link.symlink_to(tmp_path / 'a.pth')
    done = threading.Event()

    def swap():
        for turn in range(10**6):
            if done.is_set():
                return
            spare.symlink_to(tmp_path / ('ab'[turn % 2] + '.pth'))
            spare.replace(link)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        found = [read_checkpoint(link) for _ in range(100)]
    finally:
        done.set()
        thread.join()
    assert all({k: v.numel() for k, v in one.items()} in ({'a': 10}, {'b': 1000}) for one in found)


# ---------------------------------------------------------------- the guard


@pytest.fixture
def armed(tmp_path):
    torch.save(dict(extra=Calls(os.mkdir, str(tmp_path / 'canary'))), tmp_path / 'armed.pth')
    return str(tmp_path / 'armed.pth')


LOADERS = {
    "mmengine's loader": lambda path: CheckpointLoader.load_checkpoint(path, map_location='cpu'),
    "mmengine's load_checkpoint": lambda path: mmengines_load_checkpoint(
        torch.nn.Linear(1, 1), path
    ),
    'torch.load': lambda path: torch.load(path, weights_only=False),
    'torch.load of a stream': lambda path: torch.load(
        io.BytesIO(Path(path).read_bytes()), 'cpu', weights_only=False
    ),
    'torch.hub': lambda path: torch.hub.load_state_dict_from_url(
        f'https://host.invalid/{Path(path).name}', str(Path(path).parent), weights_only=False
    ),
}


@pytest.mark.parametrize('trust', [False, True])
@pytest.mark.parametrize('name', LOADERS)
def test_whatever_loads_is_guarded_unless_trusted(armed, name, trust):
    refused = contextlib.nullcontext() if trust else pytest.raises(ValueError, match='more than')
    with checkpoints_as_data(trust), refused:
        LOADERS[name](armed)
    assert Path(armed).with_name('canary').exists() == trust


def test_the_guard_inside_decides_and_none_asks_the_one_around(armed):
    def trusts():
        try:
            torch.load(armed)
        except ValueError:
            return False
        Path(armed).with_name('canary').rmdir()
        return True

    with checkpoints_as_data(trust=True):
        assert trusts()
        with checkpoints_as_data():
            assert trusts()
        with checkpoints_as_data(trust=False):
            assert not trusts()
        assert trusts()


@pytest.mark.parametrize('everywhere', [False, True])
def test_other_threads_are_guarded_only_if_asked_for(armed, everywhere):
    ended = []

    def load():
        try:
            torch.load(armed, weights_only=False)
        except ValueError as error:
            ended.append(str(error))

    with checkpoints_as_data(everywhere=everywhere):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    assert bool(ended) == everywhere
    assert Path(armed).with_name('canary').exists() != everywhere


PROBE = """
import mmengine.runner.checkpoint as m, torch
kept = lambda: [torch.load, m.CheckpointLoader.load_checkpoint.__func__,
                dict(m.CheckpointLoader._schemes), getattr(m, '_safe_torch_load', None)]
before = kept()
import mmdyn, mmdyn.models, mmdyn.apis, mmdyn.engine, mmdyn.guard as guard
assert kept() == before
assert getattr not in torch.serialization.get_safe_globals()
with guard.checkpoints_as_data(everywhere=True):
    assert kept() != before
assert kept() == before
"""


def test_importing_mmdyn_leaves_loading_alone():
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PROBE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_config_in_a_file_is_left_out_of_what_mmengine_loads(tmp_path):
    torch.save(mmcv_1_meta(), tmp_path / 'old.pth')
    with checkpoints_as_data():
        loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'old.pth'))
    assert 'config' not in loaded['meta'] and loaded['meta']['epoch'] == 1
    with checkpoints_as_data(trust=True):
        loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'old.pth'))
    assert loaded['meta']['config'] == 'a = 1\n'


def test_what_is_downloaded_is_read_as_data(tmp_path, monkeypatch):
    fetched = []

    def download(url, file, *_, **__):
        fetched.append(url)
        Path(file).write_bytes(CODE['os.mkdir'](tmp_path / 'canary'))

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    address = 'https://host.invalid/x.pth'
    check_checkpoint(address)
    with pytest.raises(ValueError, match=rf'^{address}.*more than data.*--trust-checkpoint'):
        load_checkpoint(address)
    assert fetched == [address] and not (tmp_path / 'canary').exists()


@pytest.mark.parametrize('address', ['mmcls://none', 'torchvision://none', 'open-mmlab://none'])
def test_unknown_models_of_a_zoo_are_named(address):
    with pytest.raises(ValueError, match=address):
        load_checkpoint(address)
