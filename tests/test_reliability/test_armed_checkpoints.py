"""A checkpoint that runs code when unpickled, at every place that loads one."""

import ast
import os
from pathlib import Path

import pytest
import torch
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import init_default_scope

pytest.importorskip('mmseg')


from mmdyn.analysis.evaluating import ModelTester, take_part
from mmdyn.analysis.images import find_pictures, validation_samples
from mmdyn.apis import DynamicInferencer
from mmdyn.converters.checkpoint_files import check_checkpoint, read_checkpoint
from mmdyn.engine import loading
from mmdyn.engine.prepare import build_runner, prepare_testing, prepare_training
from mmdyn.guard import load_checkpoint
from mmdyn.models.teacher import teacher_of
from mmdyn.registry import MODELS
from tests.test_reliability.examples import some
from tests.test_reliability.forging import Calls
from tests.test_reliability.tiny import call
from tests.test_tools.segmentation import ROOT
from tests.torch_line import needs_export

REFUSED = 2


@pytest.fixture
def armed(tmp_path, monkeypatch):
    """The file; its code creates a folder next to it."""
    monkeypatch.chdir(tmp_path)
    code = Calls(os.mkdir, str(tmp_path / 'ran'))
    torch.save(dict(state_dict=dict(a=torch.zeros(1)), extra=code), tmp_path / 'armed.pth')
    return tmp_path / 'armed.pth'


def ran(armed: Path) -> bool:
    return armed.with_name('ran').exists()


# ---------------------------------------------------------------- tools

# As the checkpoint on the command line.
TOOLS = {
    'app': 'CONFIG FILE',
    'benchmark': 'CONFIG FILE --shape 64 64',
    'convert_checkpoint': 'FILE OUT.pth --to dynamic-swin',
    'export': 'CONFIG FILE',
    'get_flops': 'CONFIG FILE --shape 64 64',
    'infer': 'CONFIG FILE PICTURE',
    'sweep': 'CONFIG FILE --out OUT',
    'test': 'CONFIG FILE',
    'train': 'CONFIG --resume FILE',
}
# As other arguments.
OTHER_PLACES = [
    ('app', 'CONFIG GOOD --dense CONFIG FILE'),
    ('sweep', '--model one CONFIG FILE --out OUT'),
    ('sweep', 'CONFIG GOOD --dense-twin CONFIG FILE --out OUT'),
]
WITHOUT_CHECKPOINT = {'demo', 'doctor'}  # the demo's models are those that it trained itself
# And in the config: what these do with their model is little.
WITH_CONFIG = {
    'benchmark': 'CONFIG --shape 64 64 --rounds 1 --num-images 1 --part backbone --device cpu',
    'export': 'CONFIG GOOD --out OUT.onnx',
    'get_flops': 'CONFIG --shape 64 64',
    'infer': 'CONFIG GOOD PICTURE --out OUT --no-draw --device cpu',
    'test': 'CONFIG GOOD --work-dir OUT',
    'train': 'CONFIG --work-dir OUT',
}
LOADER = """
import torch
from mmcv.transforms import LoadImageFromFile
from mmseg.models import FCNHead
from mmseg.registry import MODELS, TRANSFORMS

@MODELS.register_module(force=True)
class PlainLoader(FCNHead):
    def __init__(self, file, **kwargs):
        super().__init__(**kwargs)
        torch.load(file, weights_only=False)

@MODELS.register_module(force=True)
class DeepLoader(FCNHead):
    def __init__(self, file, **kwargs):
        super().__init__(**kwargs)
        torch.serialization.load(file, weights_only=False)

@TRANSFORMS.register_module(force=True)
class LoadingReader(LoadImageFromFile):
    def __init__(self, file):
        super().__init__()
        torch.load(file, weights_only=False)
"""
CLASS = 'from mmengine.model.weight_init import PretrainedInit as Init\n'
WAYS = {
    'init_cfg of a head': "decode_head=dict(init_cfg=dict(type='Pretrained', checkpoint='FILE'))",
    'the class': "decode_head=dict(init_cfg=dict(type=Init, checkpoint='FILE'))",
    'one of several': "decode_head=dict(init_cfg=[dict(type='Normal', layer='Linear'), "
    "dict(type='mmengine.Pretrained', checkpoint='FILE')])",
    'init_cfg of the backbone': "backbone=dict(init_cfg=dict(type='Pretrained', "
    "checkpoint='FILE'))",
    'the class, of the backbone': "backbone=dict(init_cfg=dict(type=Init, checkpoint='FILE'))",
    'init_cfg of the model': "init_cfg=dict(type='Pretrained', checkpoint='FILE')",
    'the class, of the model': "init_cfg=dict(type=Init, checkpoint='FILE')",
    'pretrained': "pretrained='FILE'",
    'a teacher': "teacher=dict(checkpoint='FILE')",
    'torch.serialization.load of a host': "decode_head=dict(type='DeepLoader', file='FILE')",
    'torch.load of a host': "decode_head=dict(type='PlainLoader', file='FILE')",
}


def words(line, segmentor, armed, config=None):
    found = dict(
        CONFIG=config or segmentor.config, FILE=armed, GOOD=segmentor.checkpoint,
        PICTURE=next(segmentor.data.rglob('*.png')),
    )  # fmt: skip
    return [found.get(word, word) for word in line.split()]


def config_with(way, segmentor, armed):
    """A config that loads the file, and a module that it needs."""
    armed.with_name('plain_loader.py').write_text(LOADER)
    config = armed.with_name('armed.py')
    # Behind _base_: configs that begin with an import are of another kind.
    config.write_text(
        f'_base_ = {str(segmentor.config)!r}\n{CLASS if "Init," in WAYS[way] else ""}'
        "custom_imports = dict(imports=['mmdyn', 'plain_loader'])\n"
        f'model = dict({WAYS[way].replace("FILE", str(armed))})\n'
    )
    return config


@pytest.mark.parametrize(
    ('tool', 'line'),
    [
        pytest.param(tool, line, marks=[needs_export] if tool == 'export' else [])
        for tool, line in (*TOOLS.items(), *OTHER_PLACES)
    ],
)
def test_every_tool_refuses_it_and_names_the_flag(tool, line, segmentor, armed):
    code, _, error = call(tool, *words(line, segmentor, armed))
    assert (code, ran(armed)) == (REFUSED, False)
    assert '--trust-checkpoint' in error and 'armed.pth' in error


# Training loads every named file; some other tools skip the initialisation of a model whose weights
# come from another file.
LOADS = [('train', way) for way in WAYS] + [
    pytest.param(tool, way, marks=[needs_export, pytest.mark.slow] if tool == 'export' else [])
    for tool in WITH_CONFIG
    if tool != 'train'
    for way in some(('torch.load of a host', 'the class', 'init_cfg of a head'), 2)
]


@pytest.mark.parametrize(('tool', 'way'), LOADS)
def test_no_tool_runs_what_a_config_names(tool, way, segmentor, armed, monkeypatch):
    monkeypatch.syspath_prepend(str(armed.parent))
    config = config_with(way, segmentor, armed)
    code, _, error = call(tool, *words(WITH_CONFIG[tool], segmentor, armed, config))
    assert not ran(armed)
    if code == REFUSED:
        assert '--trust-checkpoint' in error and 'armed.pth' in error
    else:
        assert code == 0 and tool != 'train' and way != 'torch.load of a host'


def test_what_is_trusted_is_loaded(segmentor, armed, monkeypatch):
    monkeypatch.syspath_prepend(str(armed.parent))
    config = config_with('init_cfg of a head', segmentor, armed)
    line = f'{WITH_CONFIG["train"]} --trust-checkpoint'
    code, _, _ = call('train', *words(line, segmentor, armed, config))
    assert ran(armed) and code == 0


TEACHER = """
from mmengine.model.weight_init import PretrainedInit
default_scope = 'mmdet'
custom_imports = dict(imports=['mmdyn'])
_parts = dict(
    backbone=dict(type='ResNet', depth=18),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=8, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=1, in_channels=8, feat_channels=8))
model = dict(
    type='KnowledgeDistillationSingleStageDetector', **_parts,
    teacher_config=dict(model=dict(type='RetinaNet', **_parts)), teacher_ckpt='FILE')
"""


@pytest.mark.parametrize('tool', ['get_flops', 'benchmark'])
def test_a_teacher_of_mmdets_is_no_way_in(tool, segmentor, armed):
    pytest.importorskip('mmdet')
    config = armed.with_name('teacher.py')
    config.write_text(TEACHER.replace('FILE', str(armed)))
    code, _, error = call(tool, *words(WITH_CONFIG[tool], segmentor, armed, config))
    assert (code, ran(armed)) == (REFUSED, False)
    assert '--trust-checkpoint' in error


def test_the_tools_are_all_there():
    assert {path.stem for path in (ROOT / 'tools').glob('*.py')} == {*TOOLS, *WITHOUT_CHECKPOINT}


# ---------------------------------------------------------------- plain Python


def runner_of(prepare):
    def load(config, file, trust):
        cfg, notes = prepare(config, file, trust)
        build_runner(cfg, notes).load_or_resume()

    return load


def training_with(key):
    def prepare(config, file, trust):
        options = {key: file} if isinstance(key, str) else key(file)
        prepare_training(config, cfg_options=options, trust_checkpoint=trust, work_dir='work')

    return prepare


FUNCTIONS = {
    'check_checkpoint': lambda config, file, trust: check_checkpoint(file, trust),
    'read_checkpoint': lambda config, file, trust: read_checkpoint(file, trust),
    'load_model': lambda config, file, trust: loading.load_model(
        config, file, trust_checkpoint=trust
    ),
    'DynamicInferencer': lambda config, file, trust: DynamicInferencer(
        config, file, trust_checkpoint=trust
    ),
    'ModelTester': lambda config, file, trust: ModelTester(
        config, file, Path('work'), trust_checkpoint=trust
    ),
    'training, load_from': training_with('load_from'),
    'training, init_cfg': training_with(
        lambda file: {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=file)}
    ),
    'training, teacher': training_with(lambda file: {'model.teacher': dict(checkpoint=file)}),
    'training, resume': lambda config, file, trust: prepare_training(
        config, resume=file, trust_checkpoint=trust, work_dir='work'
    ),
    'a runner, testing': runner_of(
        lambda config, file, trust: prepare_testing(
            config, file, trust_checkpoint=trust, work_dir='work'
        )
    ),
}
"""Every function with parameters for a checkpoint and its trust."""


@pytest.mark.parametrize('name', FUNCTIONS)
def test_every_function_refuses_it_and_names_the_flag(name, segmentor, armed):
    with pytest.raises(ValueError, match=r'more than data.*mkdir.*--trust-checkpoint'):
        FUNCTIONS[name](str(segmentor.config), str(armed), False)
    assert not ran(armed)


@pytest.mark.parametrize('name', ['read_checkpoint', 'load_model', 'a runner, testing'])
def test_what_a_function_is_told_to_trust_is_read(name, segmentor, armed):
    try:
        FUNCTIONS[name](str(segmentor.config), str(armed), True)
    except ValueError as error:
        assert 'has no parameter' in str(error)
    assert ran(armed)


def test_a_model_that_loads_as_another_runner_builds_it(segmentor, armed, monkeypatch):
    monkeypatch.syspath_prepend(str(armed.parent))
    config = config_with('torch.load of a host', segmentor, armed)
    options = {'runner_type': 'FlexibleRunner', 'strategy.type': 'SingleDeviceStrategy'}
    options['env_cfg.dist_cfg.backend'] = 'gloo'
    cfg, notes = prepare_training(str(config), work_dir='work', cfg_options=options)
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        build_runner(cfg, notes)
    assert not ran(armed)


def test_what_reads_pictures_is_no_way_in(segmentor, armed, monkeypatch):
    """Classes outside the model can't load it either: here a custom transform."""
    monkeypatch.syspath_prepend(str(armed.parent))
    armed.with_name('plain_loader.py').write_text(LOADER)
    config = armed.with_name('reading.py')
    steps = f"[dict(type='LoadingReader', file={str(armed)!r}), dict(type='PackSegInputs')]"
    config.write_text(
        f'_base_ = {str(segmentor.config)!r}\n'
        "custom_imports = dict(imports=['mmdyn', 'plain_loader'])\n"
        f'val_dataloader = test_dataloader = dict(dataset=dict(pipeline={steps}))\n'
    )
    cfg, notes = prepare_testing(str(config), str(segmentor.checkpoint), work_dir='work')
    ways = [
        lambda: DynamicInferencer(str(config), str(segmentor.checkpoint)),
        lambda: build_runner(cfg, notes).test_dataloader,
        lambda: find_pictures(cfg, None, 1),
        lambda: validation_samples(cfg, 1),
        lambda: take_part(cfg, 1),
    ]
    for way in ways:
        with pytest.raises(ValueError, match='--trust-checkpoint'):
            way()
        assert not ran(armed)


def test_a_built_runner_is_guarded_by_itself(segmentor, armed):
    """In plain Python, without the early check of the file."""
    cfg, notes = prepare_testing(str(segmentor.config), str(segmentor.checkpoint), work_dir='work')
    runner = build_runner(cfg, notes)
    runner._load_from = str(armed)
    for load in (runner.test, runner.load_or_resume, lambda: runner.load_checkpoint(str(armed))):
        with pytest.raises(ValueError, match='--trust-checkpoint'):
            load()
    assert not ran(armed)


SWIN = dict(type='mmdyn.DynamicSwin', embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2))
BOX = dict(
    anchor_generator=dict(type='mmdet.AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8]),
    bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
    loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True),
    loss_bbox=dict(type='mmdet.L1Loss'),
)
FCN = dict(
    type='mmseg.FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3,
    loss_decode=dict(type='mmseg.CrossEntropyLoss'),
)  # fmt: skip
SEGMENTOR = dict(type='mmdyn.DynamicEncoderDecoder', backbone=SWIN, decode_head=FCN)
NECK = dict(in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5)
PARTS = {
    'DynamicSwin': SWIN,
    'DynamicConvNeXt': dict(
        type='mmdyn.DynamicConvNeXt', arch=dict(depths=(1, 1, 4, 1), channels=(4, 8, 16, 32))
    ),
    'DynamicViT': dict(
        type='mmdyn.DynamicViT', embed_dims=4, num_layers=4, num_heads=1, patch_size=4, img_size=8,
        sparse_blocks=(2,), keep_ratios=(0.5,),
    ),
    'DynamicUPerHead': dict(
        type='mmdyn.DynamicUPerHead', in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3],
        channels=16, num_classes=3, loss_decode=dict(type='mmseg.CrossEntropyLoss'),
    ),
    'DynamicFPN': dict(type='mmdyn.DynamicFPN', tile_size=4, tile_ratio=0.5, **NECK),
    'DynamicRPNHead': dict(type='mmdyn.DynamicRPNHead', in_channels=16, feat_channels=16, **BOX),
    'SimpleFeaturePyramid': dict(type='mmdyn.SimpleFeaturePyramid', in_channels=8),
    'DynamicEncoderDecoder': SEGMENTOR,
    'DynamicRPN': dict(
        type='mmdyn.DynamicRPN', backbone=SWIN, neck=dict(type='mmdet.FPN', **NECK),
        rpn_head=dict(type='mmdet.RPNHead', in_channels=16, feat_channels=16, **BOX),
        train_cfg=dict(rpn=None), test_cfg=dict(rpn=None),
    ),
}  # fmt: skip


def initialise(part, init):
    init_default_scope('mmseg')
    MODELS.build(dict(part, init_cfg=init)).init_weights()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit], ids=['by name', 'the class'])
@pytest.mark.parametrize('name', PARTS)
def test_init_cfg_of_every_class_in_plain_python(name, kind, armed):
    if 'FPN' in name or 'RPN' in name:
        pytest.importorskip('mmdet')
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        initialise(PARTS[name], dict(type=kind, checkpoint=str(armed)))
    assert not ran(armed)


def test_init_cfg_of_a_hosts_part_in_a_model_of_ours(armed):
    init = dict(type='Pretrained', checkpoint=str(armed))
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        initialise(dict(SEGMENTOR, decode_head=dict(FCN, init_cfg=init)), None)
    assert not ran(armed)


def test_teachers_in_plain_python(segmentor, armed):
    student = loading.load_model(str(segmentor.config)).model
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        teacher_of(student, dict(checkpoint=str(armed)))
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        load_checkpoint(str(armed))
    assert not ran(armed)


# ---------------------------------------------------------------- nothing else loads

UNPICKLES = {
    'load_state_dict_from_url', 'load_url', 'load_checkpoint', 'Unpickler', 'load_from_local',
}  # fmt: skip


def test_nothing_else_unpickles():
    """All calls in our code that could unpickle a file are in one module."""
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
                if ast.unparse(node.func) == 'np.load' and len(node.args + node.keywords) == 1:
                    continue  # numpy unpickles only if told to
                if plain or name in UNPICKLES:
                    found.add((path.relative_to(ROOT).as_posix(), f'{owner}.{name}'))
    assert found == {('mmdyn/guard.py', 'CheckpointLoader.load_checkpoint')}
