"""Whatever lies in a file, reading it as a checkpoint ends: with weights, or with one message."""

import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

pytest.importorskip('mmseg')

from mmseg.models.decode_heads import FCNHead

from mmdyn.analysis import loading
from mmdyn.analysis.testing import ModelTester
from mmdyn.apis import DynamicInferencer
from mmdyn.converters import reading
from mmdyn.converters.formats import FAMILIES, convert, weights_of
from mmdyn.converters.reading import (
    check_checkpoint,
    guard_loading,
    load_checkpoint,
    read_checkpoint,
)
from mmdyn.deploy import load as deploying
from mmdyn.engine.prepare import build_runner, prepare_testing, prepare_training
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.backbones.pretrained import load_pretrained
from mmdyn.models.teacher import teacher_of
from tests.test_reliability.examples import count, examples
from tests.test_reliability.forging import (
    BOMBS,
    CODE,
    DEPTHS,
    HEADS,
    Calls,
    entries,
    saved,
    states,
    training,
    zipped,
)
from tests.test_tools.segmentation import ROOT, load_tool, write_config, write_data
from tests.torch_line import needs_export

SECTION = 'Fuzzing of files'
REFUSALS = (ValueError, TypeError, OSError)  # a FileNotFoundError is an OSError
SECONDS = 5
"""What a case may take; one that runs on is ended, and fails, after four times as long."""

CASES = {'accepted': 0, 'refused': 0, 'longest': 0.0}


@contextlib.contextmanager
def ends():
    """Fails where something takes too long, or does not end at all."""

    def give_up(*_):
        raise TimeoutError(f'not done after {4 * SECONDS} s')

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(4 * SECONDS)
    start = time.perf_counter()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    took = time.perf_counter() - start
    CASES['longest'] = max(CASES['longest'], took)
    assert took < SECONDS


# ---------------------------------------------------------------- what reads checkpoints


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toy')
    return write_config(folder, write_data(folder / 'data'))


@pytest.fixture(scope='module')
def models(config):
    """Models to load into, by name; what was loaded before doesn't matter."""
    init_default_scope('mmseg')
    stages = dict(depths=DEPTHS, keep_ratios=(0.5,), sparse_blocks=(1,))
    swin = DynamicSwin(embed_dims=4, num_heads=HEADS, window_size=2, **stages)
    del stages['depths']
    arch = dict(depths=DEPTHS, channels=(4, 8, 16, 32))
    convnext = DynamicConvNeXt(arch=arch, **stages)
    stages['sparse_blocks'] = (2,)
    sizes = dict(embed_dims=4, num_layers=3, num_heads=1, patch_size=4, img_size=8)
    vit = DynamicViT(**sizes, **stages)
    whole = loading.load_model(str(config)).model
    return {'dynamic-swin': swin, 'dynamic-convnext': convnext, 'dynamic-vit': vit, 'whole': whole}


def convert_file(path, models):
    state, _ = weights_of(read_checkpoint(path))
    for family in FAMILIES:
        try:
            convert(state, family)
        except ValueError as error:
            refusal = error
        else:
            return
    raise refusal


def into_backbones(path, models):
    for family in FAMILIES:
        try:
            load_pretrained(models[family], dict(type='Pretrained', checkpoint=str(path)))
        except ValueError as error:
            refusal = error
        else:
            return
    raise refusal


def into_runner(path, models):
    guard_loading()
    CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def into_graph(path, models):
    content = read_checkpoint(path)
    deploying.load_weights(models['whole'], weights_of(content)[0], str(path))
    deploying.dataset_meta_of(content)


READERS = {
    'check_checkpoint': lambda path, models: check_checkpoint(path),
    'the converter': convert_file,
    'init_cfg of the backbones': into_backbones,
    'a teacher': lambda path, models: teacher_of(models['whole'], dict(checkpoint=str(path))),
    "the analyses' models": lambda path, models: loading._load_weights(models['whole'], str(path)),
    'export': into_graph,
    "mmengine's loader": into_runner,
}


# ---------------------------------------------------------------- files


KEYS = st.one_of(
    st.text(max_size=12),
    st.sampled_from([0, -1, None, True, 1.5, b'key', ('a', 1), 2**70, '', '\ud800', 'x\0y']),
    st.sampled_from(
        [
            'stages.0.downsample.norm.weight',
            'layers.99999999999.blocks.0.attn.qkv.weight',
            'layers.0.blocks.7.attn.qkv.weight',
            'layers.2.score_predictor.9.in_conv.0.weight',
            f'stages.{"9" * 5000}.0.norm.weight',
            'backbone.norm.weight',
            'module.module.norm.weight',
            'ema_backbone.norm.weight',
            'predictors.0',
            'predictors.x.norm.weight',
            'state_dict',
            'stages.0.blocks.0.attn.w_msa.relative_position_bias_table',
            'dist_token',
        ]
    ),
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 9, 16, 33]), max_size=5).map(tuple)
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
)
TENSORS = st.builds(torch.zeros, SHAPES, dtype=DTYPES)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5)
)
VALUES = st.one_of(
    TENSORS,
    TENSORS.map(lambda tensor: tensor.t() if tensor.dim() < 3 else tensor.transpose(0, 1)),
    st.builds(lambda shape: torch.zeros(1).expand(shape or (1,)), SHAPES),
    st.just(torch.nn.Parameter(torch.ones(2))),
    st.just(torch.full((4, 4), float('nan'))),
    PLAIN,
    st.lists(PLAIN, max_size=2),
    st.dictionaries(st.text(max_size=3), PLAIN, max_size=2),
)


@st.composite
def contents(draw, source):
    """A checkpoint's content: a good state dict with some entries lost, renamed or replaced."""
    state = dict(source.state)
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(sorted(map(str, state)) or ['']))
        change = draw(st.sampled_from(['lost', 'renamed', 'value', 'shape', 'dtype', 'more']))
        if change == 'more':
            state[draw(KEYS)] = draw(VALUES)
        elif name in state:
            value = state.pop(name)
            if change == 'renamed':
                state[draw(KEYS)] = value
            elif change == 'value':
                state[name] = draw(VALUES)
            elif change == 'dtype' and isinstance(value, torch.Tensor):
                state[name] = value.to(draw(DTYPES))
            elif change == 'shape' and isinstance(value, torch.Tensor):
                dim = draw(st.integers(0, max(value.dim() - 1, 0)))
                state[name] = (
                    value.unsqueeze(dim) if draw(st.booleans()) or not value.dim() else value[:0]
                )
    wrapping = draw(st.sampled_from(['none', 'model', 'training', 'backbone', 'meta', 'deep']))
    if wrapping == 'model':
        return {'model': state}
    if wrapping == 'training':
        return training(state)
    if wrapping == 'backbone':
        return {'state_dict': {f'backbone.{key}': value for key, value in state.items()}}
    if wrapping == 'meta':
        return {'state_dict': state, 'meta': draw(VALUES), draw(KEYS): draw(VALUES)}
    if wrapping == 'deep':
        return draw(st.sampled_from([{'state_dict': {'state_dict': state}}, [state], (state,)]))
    return state


NAMES = [
    b'torch._utils\n_rebuild_tensor_v2', b'torch._utils\n_rebuild_parameter',
    b'torch._utils\n_rebuild_sparse_tensor', b'torch\nFloatStorage', b'torch\nLongStorage',
    b'torch\nDoubleStorage', b'torch\nQInt8Storage', b'torch\nfloat32', b'torch\nSize',
    b'torch\ndevice', b'torch.nn.parameter\nParameter', b'collections\nOrderedDict',
    b'builtins\ngetattr', b'builtins\nset', b'builtins\nslice', b'builtins\ncomplex',
    b'numpy\ndtype', b'numpy\nndarray', b'numpy._core.multiarray\nscalar',
    b'mmengine.logging.history_buffer\nHistoryBuffer', b'torch._tensor\n_rebuild_from_type_v2',
    b'_codecs\nencode', b'os\nsystem', b'posix\nsystem', b'builtins\nexec', b'builtins\neval',
]  # fmt: skip


@st.composite
def damaged(draw, data: bytes, span: int | None = None):
    """Some bytes with others in places, cut, or with a part twice."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max((span or len(data)) - 1, 0)))
        change = draw(st.sampled_from(['bit', 'byte', 'number', 'cut', 'part', 'name', 'noise']))
        if change == 'bit' and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == 'byte':
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif change == 'number':
            data[place : place + 4] = draw(
                st.sampled_from([b'\xff' * 4, b'\0' * 4, b'\xff\xff\xff\x7f'])
            )
        elif change == 'cut':
            del data[place : place + draw(st.sampled_from([1, 9, 200, len(data)]))]
        elif change == 'part':
            size = draw(st.sampled_from([1, 20, 400]))
            data[place:place] = data[max(place - size, 0) : place]
        elif change == 'noise':
            data[place:place] = draw(st.binary(max_size=20))
        else:
            found = [name for name in NAMES if name in data]
            if found:
                old = draw(st.sampled_from(found))
                data = data.replace(old, draw(st.sampled_from(NAMES)), 1)
    return bytes(data)


@st.composite
def archives(draw, file: bytes):
    """A checkpoint's zip file with other entries."""
    parts = entries(file)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(parts) or ['archive/data.pkl']))
        change = draw(st.sampled_from(['lost', 'renamed', 'pickle', 'swapped', 'more', 'cut']))
        if change == 'lost':
            parts.pop(name, None)
        elif change == 'renamed':
            parts[
                draw(st.sampled_from(['data.pkl', 'archive/constants.pkl', '/', '../x', 'a/b']))
            ] = parts.pop(name, b'')
        elif change == 'pickle' and 'archive/data.pkl' in parts:
            parts['archive/data.pkl'] = draw(damaged(File(parts['archive/data.pkl'])))
        elif change == 'swapped':
            parts[name] = parts.get(draw(st.sampled_from(sorted(parts) or [name])), b'')
        elif change == 'cut':
            parts[name] = parts.get(name, b'')[: draw(st.integers(0, 9))]
        else:
            parts[f'archive/{draw(st.text(max_size=5))}'] = draw(st.binary(max_size=9))
    how = draw(st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED]))
    return zipped(parts, how)


class File(bytes):
    """The content of a file, of which a failure shows the beginning."""

    def __repr__(self) -> str:
        return f'{bytes(self[:200])!r}... ({len(self)} bytes)'


class Source:
    """A state dict, and whole checkpoints of a training that hold it, in both formats."""

    def __init__(self, name: str, state: dict[str, torch.Tensor]) -> None:
        self.name = name
        self.state = {key: value.detach().clone() for key, value in state.items()}
        # Once: what is drawn must not depend on how pickle happens to write a file again.
        self.file = File(saved(training(self.state)))
        self.old_file = File(saved(training(self.state), zipped=False))

    def __repr__(self) -> str:
        return self.name


@st.composite
def files(draw, sources):
    """A file that is nearly a checkpoint, of one of some state dicts."""
    kind = draw(st.sampled_from(['content', 'bytes', 'archive', 'archive', 'old format']))
    source = draw(st.sampled_from(sources))
    if kind == 'content':
        return File(saved(draw(contents(source)), zipped=draw(st.booleans())))
    if kind == 'archive':
        return File(draw(archives(source.file)))
    if kind == 'bytes':
        return File(draw(damaged(source.file)))
    return File(draw(damaged(source.old_file, 12000)))  # where its pickles are


def test_any_file_gives_weights_or_one_message(tmp_path, models, figure):
    path = tmp_path / 'some.pth'
    sources = states() | {'whole': models['whole'].state_dict()}
    sources = [Source(name, state) for name, state in sources.items()]
    start = time.perf_counter()

    @examples(300, 10_000)
    @given(files(sources), st.sampled_from(sorted(READERS)))
    def read(file, reader):
        path.write_bytes(file)
        with ends():
            try:
                READERS[reader](path, models)
                CASES['accepted'] += 1
            except REFUSALS as error:
                assert str(error).strip()
                CASES['refused'] += 1

    read()
    cases = CASES['accepted'] + CASES['refused']
    assert cases >= count(300, 10_000) * 0.99 and CASES['accepted'] and CASES['refused']
    figure(SECTION, 'files made and read', f'{cases} ({CASES["accepted"]} of them loaded)')
    figure(SECTION, 'the longest took', f'{CASES["longest"]:.2f} s')
    figure(SECTION, 'all took', f'{time.perf_counter() - start:.0f} s')


WATCHED = """
import encodings.cp437, json, sys, time
from pathlib import Path

from mmdyn.converters.reading import load_checkpoint
from tests.test_reliability.forging import saved, states, training

folder = Path(sys.argv[1])
good = folder / 'good.pth'
good.write_bytes(saved(training(states()['dynamic-swin'])))
load_checkpoint(str(good))  # whatever is imported on first use is imported now

WATCHED = ('os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'os.mkdir', 'os.remove',
           'os.rename', 'subprocess.', 'socket.', 'shutil.', 'ctypes.', 'compile', 'exec', 'import',
           'pickle.find_class')
seen = []

def watch(event, arguments):
    writes = event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+')
    if event.startswith(WATCHED) or writes:
        seen.append(event + str(arguments)[:80])

sys.addaudithook(watch)

def memory(name):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024

results = {}
for file in sorted(folder.glob('*.pth')):
    seen.clear()
    before, start = max(memory('VmPeak'), memory('VmSize')), time.perf_counter()
    try:
        load_checkpoint(str(file))
        outcome = 'loaded'
    except (ValueError, TypeError, OSError) as error:
        outcome = f'{type(error).__name__}: {error}'
    took = time.perf_counter() - start
    results[file.stem] = [outcome, took, memory('VmPeak') - before, list(seen)]
print(json.dumps(results))
"""
"""Loads the files of a folder and tells what Python did meanwhile."""


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_attacks_run_nothing_write_nothing_and_take_no_memory(tmp_path, figure):
    files, canary = tmp_path / 'files', tmp_path / 'canary'
    files.mkdir()
    attacks = {f'code, {name}': make(canary) for name, make in CODE.items()}
    attacks |= {f'bomb, {name}': make() for name, make in BOMBS.items()}
    for name, file in attacks.items():
        (files / f'{name}.pth').write_bytes(file)
    done = subprocess.run(
        [sys.executable, '-c', WATCHED, str(files)],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results.pop('good')[0] == 'loaded' and set(results) == set(attacks)
    assert not canary.exists()
    for name, (outcome, took, megabytes, events) in results.items():
        loads = name in ('bomb, deep lists',)
        expected = ('loaded',) if loads else ('ValueError: ', 'DamagedCheckpointError: ')
        assert outcome.startswith(expected), (name, outcome)
        assert took < SECONDS and megabytes < 200 and events == [], (name, took, megabytes, events)
    figure(SECTION, 'files that would run code, all refused unread', len(CODE))
    figure(SECTION, 'files that would take memory or time, or are no checkpoints', len(BOMBS))
    figure(
        SECTION, 'most memory that one of these took', f'{max(r[2] for r in results.values())} MB'
    )


REAL = (
    'os.system',
    'builtins.exec',
    'os.mkdir, old format',
    'behind the content, old format',
    'two ends',
)
PLAINLY = """
import contextlib, sys, torch
for file in sys.argv[1:]:
    with contextlib.suppress(Exception):  # having run the code, they are no checkpoints
        torch.load(file, weights_only=False)
"""


def test_the_attacks_are_real(tmp_path):
    """Files of the first table do something where they are read plainly."""
    files = [tmp_path / f'{number}.pth' for number in range(len(REAL))]
    for name, file in zip(REAL, files, strict=True):
        file.write_bytes(CODE[name](file.with_suffix('.canary')))
    subprocess.run([sys.executable, '-c', PLAINLY, *map(str, files)], capture_output=True)
    assert [file.with_suffix('.canary').exists() for file in files] == [True] * len(REAL)


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', CODE)
def test_code_is_refused_where_torch_reads_plainly(name, tmp_path, monkeypatch):
    """On torch before 2.5 nothing but the look at the file stands in its way."""
    monkeypatch.setattr(reading, '_can_allow', lambda: False)
    (tmp_path / 'some.pth').write_bytes(CODE[name](tmp_path / 'canary'))
    for read in (check_checkpoint, read_checkpoint):
        with pytest.raises(ValueError, match=r'some\.pth'):
            read(tmp_path / 'some.pth')
    assert not (tmp_path / 'canary').exists()


# ---------------------------------------------------------------- every way to load a file


def runner_of(config, checkpoint, trust):
    cfg, notes = prepare_testing(config, checkpoint, trust_checkpoint=trust, work_dir=WORK_DIR)
    build_runner(cfg, notes).load_or_resume()


def hosts_module(config, checkpoint, trust):
    """A module of a host's that is initialised from the file."""
    guard_loading()
    check_trust(checkpoint, trust)
    part = FCNHead(
        in_channels=4,
        channels=4,
        num_classes=2,
        loss_decode=dict(type='mmseg.CrossEntropyLoss'),  # whatever the scope is
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    )
    part.init_weights()


def check_trust(checkpoint, trust):
    if trust:
        check_checkpoint(checkpoint, trust)


def backbone(config, checkpoint, trust):
    check_trust(checkpoint, trust)
    init = dict(type='Pretrained', checkpoint=checkpoint)
    DynamicSwin(embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1,) * 4, init_cfg=init).init_weights()


def teacher(config, checkpoint, trust):
    check_trust(checkpoint, trust)
    teacher_of(loading.load_model(config).model, dict(checkpoint=checkpoint))


def training_with(key):
    def prepare(config, checkpoint, trust):
        options = {key: checkpoint} if isinstance(key, str) else key(checkpoint)
        prepare_training(config, cfg_options=options, trust_checkpoint=trust, work_dir=WORK_DIR)

    return prepare


WORK_DIR = None  # set for each test


def resuming(config, checkpoint, trust):
    prepare_training(config, resume=checkpoint, trust_checkpoint=trust, work_dir=WORK_DIR)


FUNCTIONS = {
    'check_checkpoint': lambda config, file, trust: check_checkpoint(file, trust),
    'read_checkpoint': lambda config, file, trust: read_checkpoint(file, trust),
    'load_checkpoint': lambda config, file, trust: (
        check_trust(file, trust),
        load_checkpoint(file),
    ),
    'analysis.loading.load_model': lambda config, file, trust: loading.load_model(
        config, file, trust_checkpoint=trust
    ),
    'deploy.load.load_model': lambda config, file, trust: deploying.load_model(
        config, file, trust_checkpoint=trust
    ),
    'DynamicInferencer': lambda config, file, trust: DynamicInferencer(
        config, file, trust_checkpoint=trust
    ),
    'ModelTester': lambda config, file, trust: ModelTester(
        config, file, Path(WORK_DIR), trust_checkpoint=trust
    ),
    'init_cfg of a backbone': backbone,
    "init_cfg of a host's module": hosts_module,
    'a teacher': teacher,
    'training, load_from': training_with('load_from'),
    'training, init_cfg': training_with(
        lambda file: {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=file)}
    ),
    'training, pretrained': training_with('model.pretrained'),
    'training, teacher': training_with(lambda file: {'model.teacher': dict(checkpoint=file)}),
    'training, resume': resuming,
    'testing': runner_of,
}
"""Every function that reads a file as a checkpoint: called with a config, the file, and trust."""

# Every tool that takes a checkpoint, with what stands on its command line.
TOOLS = {
    'app': ['CONFIG', 'FILE'],
    'benchmark': ['CONFIG', 'FILE'],
    'compare': ['--model', 'one', 'CONFIG', 'FILE'],
    'convert_checkpoint': ['FILE', 'OUT.pth', '--to', 'dynamic-swin'],
    'export': ['CONFIG', 'FILE'],
    'get_flops': ['CONFIG', 'FILE'],
    'infer': ['CONFIG', 'FILE', 'PICTURE'],
    'sweep': ['CONFIG', 'FILE', '--out', 'OUT'],
    'test': ['CONFIG', 'FILE'],
    'train': ['CONFIG', '--resume', 'FILE'],
}
WITHOUT_CHECKPOINT = {'demo'}  # its models are those that it trained itself


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], 'WORK_DIR', str(tmp_path / 'work'))
    content = dict(
        state_dict=dict(a=torch.zeros(1)), extra=Calls(os.mkdir, str(tmp_path / 'canary'))
    )
    torch.save(content, tmp_path / 'hostile.pth')
    return tmp_path / 'hostile.pth'


@pytest.mark.parametrize('name', FUNCTIONS)
def test_every_function_refuses_code_and_names_the_flag(name, config, hostile):
    with pytest.raises(ValueError, match=r'more than data.*mkdir.*--trust-checkpoint'):
        FUNCTIONS[name](str(config), str(hostile), False)
    assert not (hostile.parent / 'canary').exists()


@pytest.mark.parametrize(
    'name', ['read_checkpoint', 'load_checkpoint', "init_cfg of a host's module"]
)
def test_what_is_trusted_is_read(name, config, hostile):
    with contextlib.suppress(ValueError):  # it holds no weights
        FUNCTIONS[name](str(config), str(hostile), True)
    assert (hostile.parent / 'canary').exists()


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=[needs_export] if name == 'export' else []) for name in TOOLS],
)
def test_every_tool_refuses_code_and_names_the_flag(name, config, hostile, capsys):
    picture = next(Path(config).parent.rglob('*.png'))
    words = dict(CONFIG=config, FILE=hostile, PICTURE=picture)
    arguments = [str(words.get(word, word)) for word in TOOLS[name]]
    if name == 'compare':
        arguments += ['--model', 'two', str(config), str(hostile)]
    with pytest.raises(SystemExit) as end:
        load_tool(name).main(arguments)
    assert end.value.code == 2
    assert '--trust-checkpoint' in capsys.readouterr().err
    assert not (hostile.parent / 'canary').exists()


def test_the_tools_are_all_there():
    assert {path.stem for path in (ROOT / 'tools').glob('*.py')} == {*TOOLS, *WITHOUT_CHECKPOINT}


LOADS = {'load_state_dict_from_url', 'load_url', 'load_checkpoint', 'Unpickler', 'load_from_local'}


def test_nothing_else_unpickles():
    """Calls by which a file could be unpickled, in all of ours: the one place that looks first."""
    found = set()
    for path in (p for f in ('mmdyn', 'tools', 'benchmarks') for p in (ROOT / f).rglob('*.py')):
        if '.mim' in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner, name = ast.unparse(node.func.value), node.func.attr
                plain = name in ('load', 'loads') and owner in (
                    'torch', 'pickle', 'np', 'numpy', 'joblib', 'yaml', 'torch.jit', 'torch.hub',
                    'mmengine', 'dill', 'marshal',
                )  # fmt: skip
                if plain or (name in LOADS and owner not in ('reading',)):
                    found.add((path.relative_to(ROOT).as_posix(), f'{owner}.{name}'))
    assert found == {('mmdyn/converters/reading.py', 'torch.load')}


# ---------------------------------------------------------------- what is no file, and addresses


def test_what_is_no_plain_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'fifo.pth')
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'fifo.pth')
    (tmp_path / 'loop.pth').symlink_to(tmp_path / 'loop.pth')
    (tmp_path / 'lost.pth').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'folder.pth').mkdir()
    for name in (
        'fifo.pth',
        'link.pth',
        'loop.pth',
        'lost.pth',
        'folder.pth',
        '/dev/zero',
    ):
        for read in (check_checkpoint, read_checkpoint, load_checkpoint):
            with ends(), pytest.raises(FileNotFoundError, match='is no file'):
                read(str(tmp_path / name))
    for name in ('x' * 5000, 'a\0b.pth'):
        with pytest.raises((OSError, ValueError)):
            load_checkpoint(str(tmp_path / name))


def test_a_link_to_a_checkpoint_is_one(tmp_path):
    (tmp_path / 'good.pth').write_bytes(saved({'a': torch.zeros(1)}))
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'good.pth')
    assert set(load_checkpoint(str(tmp_path / 'link.pth'))) == {'a'}


@pytest.mark.parametrize('address', ['https://host.invalid/x.pth', 'torchvision://some_model'])
def test_what_is_downloaded_is_looked_at(address, tmp_path, monkeypatch):
    fetched = []

    def download(url, file, progress):
        fetched.append(url)
        Path(file).write_bytes(CODE['os.mkdir'](tmp_path / 'canary'))

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setitem(
        reading._MODEL_ZOOS, 'torchvision', lambda: {'some_model': 'https://host.invalid/y.pth'}
    )
    guard_loading()
    for load in (load_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(ValueError, match=rf'^{address}.*more than data.*--trust-checkpoint'):
            load(address)
    assert len(fetched) == 1 and not (tmp_path / 'canary').exists()


@pytest.mark.parametrize('address', ['s3://bucket/a.pth', 'mmcls://none', 'torchvision://no'])
def test_addresses_that_cannot_be_looked_at_are_refused(address):
    with pytest.raises(ValueError, match=f'^{address}.*download it yourself'):
        load_checkpoint(address)
