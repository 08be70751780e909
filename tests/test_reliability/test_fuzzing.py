"""Whatever lies in a file, reading it as a checkpoint ends: with weights, or with one message."""

import contextlib
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

pytest.importorskip('mmseg')


from mmdyn.converters.formats import FAMILIES, convert, dataset_meta_of, weights_of
from mmdyn.converters.reading import (
    check_checkpoint,
    read_checkpoint,
)
from mmdyn.engine import loading
from mmdyn.guard import checkpoints_as_data
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.teacher import teacher_of
from mmdyn.models.weights import load_pretrained, load_weights
from tests.test_reliability.examples import count, examples
from tests.test_reliability.forging import (
    CODE,
    DEPTHS,
    HEADS,
    entries,
    saved,
    states,
    training,
    zipped,
)
from tests.test_tools.segmentation import write_config, write_data

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
    with checkpoints_as_data():
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def into_model(path, models):
    content = read_checkpoint(path)
    report = load_weights(models['whole'], weights_of(content)[0], str(path))
    report.check_in_use(models['whole'])
    dataset_meta_of(content)


READERS = {
    'check_checkpoint': lambda path, models: check_checkpoint(path),
    'the converter': convert_file,
    'init_cfg of the backbones': into_backbones,
    'a teacher': lambda path, models: teacher_of(models['whole'], dict(checkpoint=str(path))),
    'load_model': into_model,
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


REAL = (
    'os.system',
    'builtins.exec',
    'os.mkdir, old format',
    'behind the content, old format',
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
