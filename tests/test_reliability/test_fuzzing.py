"""Reading any file as a checkpoint ends with weights or with one message."""

import contextlib
import signal
import time
import zipfile

import pytest
import torch
from hypothesis import strategies as st
from mmengine.runner import CheckpointLoader

pytest.importorskip('mmseg')


from mmdyn.converters.checkpoint_files import (
    check_checkpoint,
    read_checkpoint,
)
from mmdyn.converters.formats import FAMILIES, convert, dataset_meta_of, weights_of
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

SECTION = 'Fuzzing of files'
REFUSALS = (ValueError, TypeError, OSError)  # a FileNotFoundError is an OSError
SECONDS = 5
"""Time limit per case; after four times as long it is stopped and fails."""

CASES = {'accepted': 0, 'refused': 0, 'longest': 0.0}


@contextlib.contextmanager
def ends():
    """Fail if something takes too long or hangs."""

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


# ---------------------------------------------------------------- readers of checkpoints


@pytest.fixture(scope='module')
def models(segmentor):
    """Models to load into, by name; earlier loading has no effect."""
    whole = loading.load_model(str(segmentor.config)).model
    one = dict(keep_ratios=(0.5,), sparse_blocks=(1,))
    arch = dict(depths=DEPTHS, channels=(4, 8, 16, 32))
    return {
        'whole': whole,
        'dynamic-swin': DynamicSwin(
            embed_dims=4, depths=DEPTHS, num_heads=HEADS, window_size=2, **one
        ),
        'dynamic-convnext': DynamicConvNeXt(arch=arch, **one),
        'dynamic-lvvit': DynamicViT(
            embed_dims=4, num_layers=3, num_heads=1, img_size=32, stem_channels=4, **one
        ),
        'dynamic-vit': DynamicViT(
            embed_dims=4, num_layers=3, num_heads=1, patch_size=4, img_size=8, **one
        ),
    }


def in_any_family(read):
    """``read(path, models, family)`` for the first family that accepts the file."""

    def reader(path, models):
        for family in FAMILIES:
            try:
                return read(path, models, family)
            except ValueError as error:
                refusal = error
        raise refusal

    return reader


def into_backbone(path, models, family):
    load_pretrained(models[family], dict(type='Pretrained', checkpoint=str(path)))


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
    'the converter': in_any_family(
        lambda path, models, family: convert(weights_of(read_checkpoint(path))[0], family)
    ),
    'init_cfg of the backbones': in_any_family(into_backbone),
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


def disturb(draw, state):
    """Remove, rename or replace some entries of a state dict."""
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(sorted(map(str, state)) or ['']))
        change = draw(st.sampled_from(['lost', 'renamed', 'value', 'shape', 'dtype', 'more']))
        if change == 'more':
            state[draw(KEYS)] = draw(VALUES)
        if change == 'more' or name not in state:
            continue
        value = state.pop(name)
        if change == 'renamed':
            state[draw(KEYS)] = value
        elif change == 'value':
            state[name] = draw(VALUES)
        elif change == 'dtype' and isinstance(value, torch.Tensor):
            state[name] = value.to(draw(DTYPES))
        elif change == 'shape' and isinstance(value, torch.Tensor):
            state[name] = value.unsqueeze(0) if draw(st.booleans()) else value.flatten()[1:]


@st.composite
def contents(draw, source):
    """Possible contents of a checkpoint."""
    state = dict(source.state)
    disturb(draw, state)
    return draw(
        st.sampled_from(
            [
                state,
                {'model': state},
                training(state),
                {'state_dict': {f'backbone.{key}': value for key, value in state.items()}},
                {'state_dict': state, 'meta': draw(VALUES), draw(KEYS): draw(VALUES)},
                {'state_dict': {'state_dict': state}},
                [state],
            ]
        )
    )


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
    """Bytes with random changes, losses, repetitions, or other function names."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max((span or len(data)) - 1, 0)))
        change = draw(st.sampled_from(['bit', 'bytes', 'cut', 'part', 'name', 'noise']))
        if change == 'bit' and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == 'bytes':
            other = draw(st.sampled_from([b'\xff' * 4, b'\0' * 4, b'\xff\xff\xff\x7f', b'.']))
            data[place : place + len(other)] = other
        elif change == 'cut':
            del data[place : place + draw(st.sampled_from([1, 9, 200, len(data)]))]
        elif change == 'part':
            data[place:place] = data[max(place - draw(st.sampled_from([1, 20, 400])), 0) : place]
        elif change == 'noise':
            data[place:place] = draw(st.binary(max_size=20))
        elif found := [name for name in NAMES if name in data]:
            data = data.replace(draw(st.sampled_from(found)), draw(st.sampled_from(NAMES)), 1)
    return bytes(data)


@st.composite
def archives(draw, file: bytes):
    """A checkpoint's zip file with changed entries."""
    parts = entries(file)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(parts) or ['archive/data.pkl']))
        change = draw(st.sampled_from(['lost', 'renamed', 'pickle', 'swapped', 'more', 'cut']))
        content = parts.get(name, b'')
        if change == 'renamed':
            other = st.sampled_from(['data.pkl', 'archive/constants.pkl', '/', '../x', 'a/b'])
            parts[draw(other)] = content
        if change in ('lost', 'renamed'):
            parts.pop(name, None)
        elif change == 'pickle' and 'archive/data.pkl' in parts:
            parts['archive/data.pkl'] = draw(damaged(File(parts['archive/data.pkl'])))
        elif change == 'swapped':
            parts[name] = parts.get(draw(st.sampled_from(sorted(parts) or [name])), b'')
        elif change == 'cut':
            parts[name] = content[: draw(st.integers(0, 9))]
        elif change == 'more':
            parts[f'archive/{draw(st.text(max_size=5))}'] = draw(st.binary(max_size=9))
    return zipped(parts, draw(st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])))


class File(bytes):
    """Content of a file; failures show only the beginning."""

    def __repr__(self) -> str:
        return f'{bytes(self[:200])!r}... ({len(self)} bytes)'


class Source:
    """A state dict, and whole checkpoints with it in both formats."""

    def __init__(self, name: str, state: dict[str, torch.Tensor]) -> None:
        self.name = name
        self.state = {key: value.detach().clone() for key, value in state.items()}
        # Written once: drawn examples must not depend on details of pickle.
        self.file = File(saved(training(self.state)))
        self.old_file = File(saved(training(self.state), zipped=False))

    def __repr__(self) -> str:
        return self.name


@st.composite
def files(draw, sources):
    """A file that resembles a checkpoint of one of the state dicts."""
    kind = draw(st.sampled_from(['content', 'bytes', 'archive', 'archive', 'old format']))
    source = draw(st.sampled_from(sources))
    if kind == 'content':
        return File(saved(draw(contents(source)), zipped=draw(st.booleans())))
    if kind == 'archive':
        return File(draw(archives(source.file)))
    if kind == 'bytes':
        return File(draw(damaged(source.file)))
    return File(draw(damaged(source.old_file, 12000)))  # the part with pickles


def test_any_file_gives_weights_or_one_message(tmp_path, models, figure):
    path = tmp_path / 'some.pth'
    sources = states() | {'whole': models['whole'].state_dict()}
    sources = [Source(name, state) for name, state in sources.items()]
    start = time.perf_counter()

    @examples(200, 10_000, file=files(sources), reader=st.sampled_from(sorted(READERS)))
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
    assert cases >= count(200, 10_000) * 0.99 and CASES['accepted'] and CASES['refused']
    figure(SECTION, 'files made and read', f'{cases} ({CASES["accepted"]} of them loaded)')
    figure(SECTION, 'the longest took', f'{CASES["longest"]:.2f} s')
    figure(SECTION, 'all took', f'{time.perf_counter() - start:.0f} s')


REAL = (
    'os.system',
    'builtins.exec',
    'os.mkdir, old format',
    'behind the content, old format',
)


def test_the_attacks_are_real(tmp_path):
    """Verifies that they work when unpickled without restrictions."""
    for number, name in enumerate(REAL):
        file = tmp_path / f'{number}.pth'
        file.write_bytes(CODE[name](file.with_suffix('.canary')))
        with contextlib.suppress(Exception):  # the result is no checkpoint
            torch.load(file, weights_only=False)
        assert file.with_suffix('.canary').exists(), name
