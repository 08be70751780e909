"""Wrong configs and command lines: one message with the value and the remedy, exit code 2, soon."""

import os
import resource
import shlex
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from mmdyn.models.new_parameters import is_new
from tests.test_reliability.tiny import call, check_message, make_detector, make_segmentor
from tests.test_tools.segmentation import ROOT
from tests.torch_line import needs_export

SECONDS = 20
"""Of computing, by which an answer must have come: how fast a busy machine is says nothing."""
TRAIN = 'train {config} --work-dir {work}'
TRAIN_DETECTOR = 'train {detector} --work-dir {work}'
TEST = 'test {config} {checkpoint} --work-dir {work}'
TEST_WITH = 'test {config} {files}/%s --work-dir {work}'
INFER = 'infer {config} {checkpoint} {picture} --device cpu --out {work}'
SWEEP = 'sweep {config} {checkpoint} --images 1 --num-images 1 --rounds 1 --out {work}'
COMPARE = 'compare --model a {config} {checkpoint} --rounds 1 --out {work}'
BENCHMARK = 'benchmark {config} --rounds 1 --num-images 1 --device cpu'
FLOPS = 'get_flops {config} --shape 64'
EXPORT = 'export {config} {checkpoint} --out {work}.onnx'
CONVERT = 'convert_checkpoint {checkpoint} {work}.pth --to dynamic-swin'
APP = 'app {config} {checkpoint} --device cpu'


def backbone(setting: str) -> str:
    return f"model['backbone'].update(dict({setting}))"


def head(setting: str) -> str:
    return f"model['decode_head'].update(dict({setting}))"


def data(setting: str) -> str:
    return f"train_dataloader['dataset'].update(dict({setting}))"


RIGHT = '--cfg-options KEY=VALUE'  # where to set it right, told of every part of a config
# Command line; lines to add to the config; the value and the remedy that the message must hold.
CASES = [
    # Config files
    ('train gone.py', '', "'gone.py'", 'does not exist'),
    ('train mmdyn::upernet_dynswn_mini.py', '', 'upernet_dynswn_mini', 'upernet_dynswin_mini.py'),
    ('train nope::a/b.py', '', "'nope::a/b.py'", 'does not support to load nope'),
    ('train {files}', '', '{files}', 'is a folder: name a file'),
    ('train {files}/empty.py --work-dir {work}', '', 'no model', 'give the whole config'),
    ('train {files}/syntax.py', '', 'syntax.py', "SyntaxError in line 1: '(' was never closed"),
    ('train {files}/binary.py', '', 'binary.py', 'UnicodeDecodeError'),
    ('train {files}/list.pth', '', 'list.pth', 'py/yml/yaml/json'),
    ('train {files}/no_base.py', '', 'gone_base.py', 'No such file'),
    (TRAIN, '1 / 0', '{config}', 'ZeroDivisionError'),
    (TRAIN, "custom_imports['imports'] = ['no_such_module']", 'no_such_module', 'PYTHONPATH'),
    (TRAIN, "default_scope = 'nohost'", "'nohost'", "'mmseg' or 'mmdet'"),
    (TRAIN, 'del model', 'no model', 'whole config of a segmentor or detector'),
    (TRAIN, 'model = [1]', '[1]', 'must be a dict'),
    (TRAIN, 'default_hooks = 3', 'default_hooks must be a dict, got 3', 'set its keys'),
    (TRAIN, "custom_hooks = dict(type='A')", "{'type': 'A'}", 'a list of dicts'),
    (TRAIN, 'work_dir = 3', 'got 3', 'must be a path'),
    (TRAIN, 'train_cfg = None', 'sets no train_cfg', 'set train_dataloader, train_cfg, optim'),
    (TRAIN, 'val_evaluator = None', 'sets no val_evaluator', 'or none of them'),
    # Options on the command line
    (f'{TRAIN} --cfg-options nonsense', '', "'nonsense'", 'takes KEY=VALUE'),
    (f'{TRAIN} --cfg-options =3', '', "'=3'", 'takes KEY=VALUE'),
    (f'{TRAIN} --cfg-options a=[0.7,0.5', '', 'a=[0.7,0.5', 'close all brackets'),
    (
        f"{TRAIN} --cfg-options 'custom_hooks=[dict(type=A,x=dict(y=1))]'",
        '',
        'custom_hooks=[dict(type=A,x=dict(y=1))]',
        'set their keys one by one',
    ),
    (f'{TRAIN} --cfg-options model.backbone=3', '', 'got 3', 'must be a dict'),
    (f'{TRAIN} --cfg-options model.backbone.depth=1', '', "'depth'", RIGHT),
    (f'{TRAIN} --cfg-options model.backbone.keep_ratios=0.7', '', 'got 0.7', 'a sequence of numb'),
    (f'{TRAIN} --bogus', '', '--bogus', 'unrecognized arguments'),
    (f'{TRAIN} --local_rank x', '', "'x'", 'invalid int value'),
    # Keep ratios and where they are decided
    (TRAIN, backbone("keep_ratios=(float('nan'), 0.5, 0.3)"), '(nan, 0.5, 0.3)', 'in (0, 1]'),
    (TRAIN, backbone("keep_ratios=(float('inf'), 0.5, 0.3)"), '(inf, 0.5, 0.3)', 'in (0, 1]'),
    (TRAIN, backbone('keep_ratios=(True, 0.5, 0.3)'), '(True, 0.5, 0.3)', 'must hold numbers'),
    (TRAIN, backbone("keep_ratios=('0.7', 0.5, 0.3)"), "('0.7', 0.5, 0.3)", 'must hold numbers'),
    (TRAIN, backbone('keep_ratios=0.7'), 'got 0.7', 'a sequence of numbers'),
    (TRAIN, backbone('keep_ratios=(0.7, 0.5)'), '(0.7, 0.5) has 2', 'one per entry of sparse_b'),
    (TRAIN, backbone('keep_ratios=(0.3, 0.5, 0.7)'), '(0.3, 0.5, 0.7)', 'highest to the lowest'),
    (TRAIN, backbone('sparse_blocks=(-1, 1, 2)'), '(-1, 1, 2)', 'in 0..3'),
    (TRAIN, backbone('sparse_blocks=(1, 1, 2)'), '(1, 1, 2)', 'must rise strictly'),
    (TRAIN, backbone('sparse_blocks=(1, 2, 4)'), '(1, 2, 4)', 'in 0..3'),
    (TRAIN, backbone('sparse_blocks=()'), 'empty', 'at least one block'),
    (TRAIN, backbone('sparse_stage=4'), 'sparse_stage=4', '0..3'),
    (TRAIN, backbone("sparse_stage='2'"), "'2'", 'must be an integer'),
    (TRAIN, backbone('keep_ratio=0.7'), "'keep_ratio'", RIGHT),
    (TRAIN, backbone("policy=dict(type='mmdyn.NoPolicy')"), 'mmdyn.NoPolicy', RIGHT),
    (TRAIN, backbone("policy=dict(type='mmdyn.ThresholdPolicy', threshold=2)"), 'got 2', '[0, 1)'),
    (TRAIN, backbone("policy=dict(type='mmdyn.ThresholdPolicy', thres=.5)"), "'thres'", RIGHT),
    (TRAIN, backbone("policy=dict(type='mmdyn.RandomPolicy', seed='x')"), "'x'", 'an integer'),
    (TRAIN, backbone("policy='TopK'"), "'TopK'", "dict(type='mmdyn.TopKPolicy')"),
    # The backbone's own sizes
    (TRAIN, backbone('num_heads=(1, 1, 3, 2)'), 'num_heads=3', 'divide embed_dims=32'),
    (TRAIN, backbone('num_heads=(1, 1, 0, 2)'), 'got 0', 'num_heads must be 1 or more'),
    (TRAIN, backbone('num_heads=(1, 1, 2)'), '(1, 1, 2)', 'one entry per stage'),
    (TRAIN, backbone('window_size=0'), 'got 0', 'window_size must be 1 or more'),
    (TRAIN, backbone('window_size=4.5'), 'got 4.5', 'window_size must be an integer'),
    (TRAIN, backbone("embed_dims='8'"), "got '8'", 'embed_dims must be an integer'),
    (TRAIN, backbone('embed_dims=7'), '[56]', 'in_channels is 64'),
    (TRAIN, backbone('depths=4'), 'got 4', 'a sequence of integers'),
    (TRAIN, backbone('depths=(1, 1, -4, 1)'), 'got -4', 'depths must be 1 or more'),
    (TRAIN, backbone('strides=(4, 2, 2, 0)'), 'got 0', 'strides must be 1 or more'),
    (TRAIN, backbone('mlp_ratio=-1'), 'got -8', 'mlp_ratio times the channels must be 1 or more'),
    (TRAIN, backbone('drop_path_rate=2'), 'got 2', '[0, 1)'),
    (TRAIN, backbone('out_indices=(4,)'), 'out_indices=4', '-4..3'),
    (TRAIN, backbone('frozen_stages=9'), 'frozen_stages=9', '-1..4'),
    (TRAIN, backbone('in_channels=4'), 'in_channels=4', 'data_preprocessor.mean'),
    (TRAIN, backbone("init_cfg=dict(type='Pretrained')"), "{'type': 'Pretrained'}", 'checkpoint='),
    # What is around it
    (TRAIN, backbone("type='mmdyn.DynamicSwn'"), 'mmdyn.DynamicSwn', RIGHT),
    (TRAIN, "model['type'] = 'MaskRCNN'", 'MaskRCNN', RIGHT),
    (TRAIN, "default_scope = 'mmdet'", 'SegLocalVisualizer', RIGHT),
    (TRAIN, head("type='RetinaHead'"), 'RetinaHead', RIGHT),
    (TRAIN, head('in_channels=32'), 'in_channels is 32', '[64]'),
    (TRAIN, head('in_index=3'), 'in_index is 3', '[64]'),
    (TRAIN, head('num_classes=2'), 'num_classes=2', 'has 3 classes'),
    (TRAIN, head('num_classes=0'), 'got 0', '1 or more'),
    (TRAIN, "data_preprocessor['size'] = (64,)", '(64,)', 'a height and a width'),
    (TRAIN, "data_preprocessor['mean'] = [1.0] * 2", '2 values', 'in_channels=3'),
    (TRAIN, "model['test_cfg'] = dict(mode='slide')", 'got None', 'crop_size must be two'),
    (TRAIN, "model['test_cfg'] = dict(mode='cut')", "'cut'", "'whole' or 'slide'"),
    (
        TRAIN,
        "model['keep_ratio_loss'] = dict(type='mmdyn.KeepRatioLoss', loss_weight='x')",
        "loss_weight='x'",
        RIGHT,
    ),
    (TRAIN, "model['teacher'] = 'self'", "'self'", 'set load_from'),
    (TRAIN, "model['teacher'] = dict(checkpoint='gone.pth')", 'gone.pth', 'check the path'),
    (TRAIN, "model['teacher'] = dict(checkpoint='{checkpoint}')", 'holds predictors', 'the dense'),
    # Data and training
    (f'{TRAIN} --data-root nowhere', '', 'nowhere/images', '--data-root FOLDER'),
    (TRAIN, data("data_prefix=dict(img_path='nowhere')"), '/nowhere', 'data_root=FOLDER'),
    (TRAIN, data("img_suffix='.jpg'"), 'that end in .jpg', 'data_root=FOLDER'),
    (TRAIN, data("metainfo=dict(classes=tuple('abcd'))"), 'has 4 classes', 'num_classes=3'),
    (TRAIN, data("type='NoDataset'"), "'NoDataset'", 'check the name'),
    (TRAIN, data("pipeline=[dict(type='LoadNothing')]"), 'LoadNothing', RIGHT),
    (TRAIN, data("pipeline=[dict(type='RandomCrop', crop_size=(0, 0))]"), '(0, 0)', RIGHT),
    (f'{TRAIN} --cfg-options train_dataloader.batch_size=0', '', 'batch_size=0', 'positive int'),
    (f'{TRAIN} --cfg-options train_dataloader.num_workers=-1', '', 'num_workers', 'non-negative'),
    (f'{TRAIN} --cfg-options train_dataloader.sampler.type=None', '', 'None', RIGHT),
    (f'{TRAIN} --cfg-options train_cfg.val_interval=0', '', 'got 0', 'must be 1 or more'),
    (f'{TRAIN} --cfg-options train_cfg.max_iters=ten', '', "'ten'", 'must be an integer'),
    (TRAIN, "train_cfg = dict(type='IterBasedTrainLoop', epochs=3)", "'epochs'", RIGHT),
    (f'{TRAIN} --cfg-options randomness.seed=-1', '', 'got -1', '0..4294967295'),
    (f'{TRAIN} --cfg-options randomness.seed=abc', '', "'abc'", 'an integer'),
    (f'{TRAIN} --cfg-options optim_wrapper.optimizer.lr=-1', '', 'lr=-1', RIGHT),
    (f'{TRAIN} --cfg-options optim_wrapper.optimizer.type=Adamm', '', "'Adamm'", 'such as AdamW'),
    (TRAIN, "param_scheduler = [dict(type='LinearLR', start_factor=2)]", 'start_factor=2', RIGHT),
    (TRAIN, "val_evaluator = dict(type='NoMetric')", 'NoMetric', RIGHT),
    (TRAIN, "custom_hooks = [dict(type='mmdyn.KeepRatioHook', bogus=1)]", "'bogus'", RIGHT),
    (TRAIN, "default_hooks['logger']['interval'] = 0", 'interval=0', RIGHT),
    (f'{TRAIN} --auto-scale-lr', 'auto_scale_lr = dict(base_batch_size=0)', 'got 0', '1 or more'),
    (f'{TRAIN} --amp', '', 'AmpOptimWrapper', 'gpu'),
    (f'{TRAIN} --launcher slurm', '', 'SLURM_PROCID', 'leave out --launcher'),
    ('train {config} --work-dir {files}/empty.py', '', 'empty.py is no folder', 'name another'),
    ('train {config} --work-dir /proc/mmdyn', '', '/proc', 'name another'),
    ("train {config} --work-dir ''", '', "''", 'names no folder'),
    (f'{TRAIN_DETECTOR} --cfg-options model.bbox_head.num_classes=2', '', 'num_classes=2', '3 cl'),
    (f'{TRAIN_DETECTOR} --cfg-options model.neck.in_channels=8,16,32', '', '[8, 16, 32]', '[16, 3'),
    (
        f"{TRAIN_DETECTOR} --cfg-options 'train_dataloader.dataset.metainfo.classes=(x,y,z)'",
        '',
        "('x', 'y', 'z')",
        'those of the annotations',
    ),
    # Checkpoints
    (f'{TRAIN} --resume {{files}}/gone.pth', '', 'gone.pth', 'check the path'),
    (f'{TRAIN} --resume {{checkpoint}}', '', '{checkpoint}', 'start from it'),
    (TRAIN, "load_from = '{files}/other.pth'", 'other.pth', 'init_cfg'),
    (TRAIN, "load_from = '{files}/list.pth'", 'list.pth', 'save {{'),
    (TEST_WITH % 'gone.pth', '', 'gone.pth', 'check the path'),
    (TEST_WITH % 'zero.pth', '', 'zero.pth', 'download or write it again'),
    (TEST_WITH % 'truncated.pth', '', 'truncated.pth', 'download or write it again'),
    (TEST_WITH % 'other.pth', '', 'other.pth', 'give a checkpoint of the whole'),
    (TEST_WITH % 'backbone.pth', '', 'backbone.pth', 'Pretrained'),
    (TEST_WITH % 'dense.pth', '', 'dense.pth', '--keep-ratio 1'),
    (TEST_WITH % 'list.pth', '', 'it holds a list', "{{'state_dict': model.state_dict()}}"),
    ('test {config} {files} --work-dir {work}', '', '{files}', 'check the path'),
    (TEST, backbone('mlp_ratio=2'), '(32, 8)', 'give a checkpoint of the whole'),
    ('test {config} {detector_checkpoint} --work-dir {work}', '', 'detector.pth', 'of this config'),
    ('test {detector} {checkpoint} --work-dir {work}', '', 'tiny.pth', 'of this config'),
    # The other tools
    (f'{TEST} --keep-ratio nan', '', 'got nan', 'above 0 and at most 1'),
    (f'{TEST} --keep-ratios 0.7 0.5', '', '(0.7, 0.5) has 2', 'one per entry of sparse_b'),
    (f'{TEST} --keep-ratio 0.5', backbone("type='SwinTransformer'"), "'SwinTransformer'", 'leave'),
    (f'{TEST} --out {{files}}/empty.py', '', 'empty.py is no folder', 'name another'),
    (f'{TEST} --wait-time -1', '', 'got -1', '0 or more'),
    (TEST, 'test_dataloader = None', 'sets no test_dataloader', 'set test_dataloader'),
    ('test {detector} {detector_checkpoint} --out x.txt', '', 'x.txt', '.pkl'),
    (f'{INFER} --device tpu', '', '--device tpu', 'Give cpu'),
    (f'{INFER} --batch-size 0', '', 'got 0', '1 or more'),
    (f'{INFER} --min-score nan', '', 'got nan', '[0, 1]'),
    (f'{INFER} --tile-ratio 0.5', '', 'tile_ratio', 'leave it out'),
    (f'{INFER} --policy RandomPolicy seed=1.5', '', 'seed=1.5', 'an integer'),
    (f'{INFER} --out {{files}}/empty.py/x', '', 'empty.py is no folder', 'name another'),
    (INFER, 'del test_dataloader, val_dataloader', 'test_dataloader', 'add metainfo'),
    ('infer {config} {checkpoint} {files}/empty.py', '', 'empty.py', '.png'),
    (f'{SWEEP} --budget-ms nan', '', 'got nan', 'above 0'),
    (f'{SWEEP} --seed -1', '', 'got -1', '0..4294967295'),
    ('sweep {config} {files}/dense.pth --images 1 --out {work}', '', 'dense.pth', 'Train the spa'),
    (f'{COMPARE} --learned 2', '', 'got 2', 'at most 1'),
    ('compare --model ../a {config} {checkpoint}', '', "'../a'", 'a name is that of a folder'),
    (f'{BENCHMARK} --min-seconds nan', '', 'got nan', 'finite'),
    (f'{BENCHMARK} --shape 0 64', '', 'got 0', '1 or more'),
    (f'{BENCHMARK} --device cuda:99', '', 'cuda:99', 'Give cpu'),
    (f'{FLOPS} --out {{files}}', '', '{files} is a folder', 'name a file'),
    (f'{FLOPS} --seed 1.5', '', "'1.5'", 'invalid'),
    (FLOPS, "default_scope = 'mmengine'", "'mmengine'", 'mmseg or mmdet'),
    (f'{EXPORT} --shape 0 64', '', '0x64', 'must be positive'),
    (f'{EXPORT} --opset 3', '', 'opset 3', '18 to 22'),
    ('export {config} {checkpoint} --out gone/x.onnx', '', 'gone', 'make it first'),
    (f'{CONVERT} --to resnet', '', "'resnet'", 'dynamic-swin'),
    ('convert_checkpoint {checkpoint} /proc/x.pth --to dynamic-swin', '', '/proc', 'name another'),
    ('convert_checkpoint {files}/other.pth {work}.pth --to dynamic-vit', '', "'a.b'", 'known are'),
    (f'{APP} --port 99999', '', 'got 99999', '1..65535'),
    (f'{APP} --max-upload inf', '', 'got inf', 'finite'),
    (f'{APP} --device tpu', '', '--device tpu', 'Give cpu'),
    ('demo --work-dir {files}/empty.py', '', 'empty.py is no folder', 'name another'),
    ('demo --seed x --work-dir {work}', '', "'x'", 'invalid'),
]
PROCESSES = (0, 5, 81)
"""Of the cases, these run as processes too."""


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Paths by the names that stand for them in the table."""
    folder = tmp_path_factory.mktemp('world')
    files = folder / 'files'
    files.mkdir()
    (folder / 'segmentor').mkdir()
    (folder / 'detector').mkdir()
    segmentor = make_segmentor(folder / 'segmentor')
    detector = make_detector(folder / 'detector')
    write_bad_files(files, segmentor.checkpoint)
    return dict(
        config=segmentor.config,
        checkpoint=segmentor.checkpoint,
        picture=segmentor.data / 'images' / '0.png',
        detector=detector.config,
        detector_checkpoint=detector.checkpoint,
        files=files,
    )


def write_bad_files(folder, checkpoint):
    """Configs that are none, checkpoints that don't fit."""
    (folder / 'empty.py').touch()
    (folder / 'syntax.py').write_text('model = dict(\n')
    (folder / 'binary.py').write_bytes(bytes(range(256)))
    (folder / 'no_base.py').write_text("_base_ = 'gone_base.py'")
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    backbone = {k.removeprefix('backbone.'): v for k, v in state.items() if 'backbone' in k}
    torch.save(dict(state_dict=backbone), folder / 'backbone.pth')
    dense = {key: value for key, value in state.items() if not is_new(key)}
    torch.save(dict(state_dict=dense), folder / 'dense.pth')
    torch.save(dict(state_dict={'a.b': torch.zeros(1)}), folder / 'other.pth')
    torch.save([1, 2], folder / 'list.pth')
    (folder / 'zero.pth').touch()
    (folder / 'truncated.pth').write_bytes(checkpoint.read_bytes()[:2000])


def prepared(case, world, tmp_path):
    """The tool, its arguments, and what its message must hold."""
    command, change, *said = case
    names = {**world, 'work': tmp_path / 'work'}
    # Runs of one name and second share what mmengine keeps for a process.
    config = tmp_path / f'{tmp_path.name}.py'
    config.write_text(f'{world["config"].read_text()}\n{fill(change, names)}\n')
    names['config'] = config
    tool, *argv = shlex.split(command)
    return tool, [fill(word, names) for word in argv], [fill(text, names) for text in said]


def fill(text, names):
    """Not format(): configs are full of braces."""
    for name, value in names.items():
        text = text.replace(f'{{{name}}}', str(value))
    return text.replace('{{', '{').replace('}}', '}')


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Nothing to be found where the tools run."""
    monkeypatch.chdir(tmp_path)
    # Runs of one second in one process share a logger, whose stream pytest has closed.
    monkeypatch.setattr('logging.raiseExceptions', False)
    monkeypatch.setattr('signal.signal', lambda *_: None)
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)


_SECONDS = {}


@pytest.mark.parametrize(
    'case',
    [
        pytest.param(
            case,
            id=f'{number}: {case[1] or case[0]}'[:90],
            marks=[needs_export] if case[0].startswith('export') else [],
        )
        for number, case in enumerate(CASES)
    ],
)
def test_one_message_with_value_and_remedy_before_any_training(case, world, tmp_path, elsewhere):
    tool, argv, said = prepared(case, world, tmp_path)
    start = time.process_time()
    code, _, error = call(tool, *argv)
    _SECONDS[case] = time.process_time() - start
    assert code == 2, error
    check_message(error, said)
    assert not [*tmp_path.rglob('*.pth'), *tmp_path.rglob('*.onnx')]
    assert _SECONDS[case] < SECONDS


def seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize('number', PROCESSES)
def test_as_processes(number, world, tmp_path, figure):
    tool, argv, said = prepared(CASES[number], world, tmp_path)
    start = seconds_of_children()
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / f'{tool}.py'), *argv],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        timeout=10 * SECONDS,
    )
    seconds = seconds_of_children() - start
    assert done.returncode == 2
    check_message(done.stderr, said)
    assert 'Traceback' not in done.stdout
    assert seconds < SECONDS
    figure(
        'Bad configurations',
        f'as a process of its own: {CASES[number][0]}',
        f'{seconds:.1f} s of computing',
    )


def test_what_may_not_be_read_or_written(world, tmp_path, elsewhere, monkeypatch):
    checkpoint = world['checkpoint']
    monkeypatch.setattr('os.access', lambda path, mode, **_: str(path) != str(checkpoint))
    code, _, error = call('test', world['config'], checkpoint, '--work-dir', tmp_path / 'work')
    assert code == 2
    check_message(error, [f'{checkpoint} may not be read', 'change its permissions'])
    monkeypatch.setattr('os.access', lambda path, mode, **_: False)
    code, _, error = call('train', world['config'], '--work-dir', tmp_path / 'work')
    assert code == 2
    check_message(error, [f'nothing may be written into {tmp_path}', 'name another folder'])


@pytest.mark.parametrize(('rank', 'size'), [('x', '2'), ('3', '2'), ('-1', '2'), ('0', '')])
def test_a_rank_that_is_none_does_not_wait_for_others(
    world, tmp_path, elsewhere, monkeypatch, rank, size
):
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('WORLD_SIZE', size)
    start = time.monotonic()
    code, _, _ = call('train', world['config'], '--launcher', 'pytorch', '--work-dir', 'work')
    assert code == 2
    assert time.monotonic() - start < SECONDS


def test_figures(figure):
    section = 'Bad configurations'
    tools = Counter(case[0].split()[0] for case in CASES)
    assert len(CASES) >= 60
    assert set(tools) == {path.stem for path in (ROOT / 'tools').glob('*.py')}
    figure(section, 'wrong configs and command lines', len(CASES))
    figure(section, 'of each tool', ', '.join(f'{tool} {n}' for tool, n in tools.most_common()))
    if _SECONDS:
        slowest = max(_SECONDS, key=_SECONDS.get)
        figure(section, 'slowest, in one process', f'{_SECONDS[slowest]:.1f} s of computing')
