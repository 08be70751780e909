"""Wrong configs and command lines: one message that names the offending value, exit code 2."""

import os
import resource
import shlex
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from mmdyn.converters.additions import is_new
from tests.test_reliability.tiny import call, check_message
from tests.test_tools.segmentation import ROOT
from tests.torch_line import needs_export

SECTION = 'Bad configurations'
SECONDS = 20
"""Limit in CPU seconds, which does not depend on how busy a machine is."""
TRAIN = 'train {config} --work-dir {work}'
DETECTOR = 'train {detector} --work-dir {work}'
TEST = 'test {config} {checkpoint} --work-dir {work}'
TEST_WITH = 'test {config} {files}/%s --work-dir {work}'
INFER = 'infer {config} {checkpoint} {picture} --device cpu --out {work}'
SWEEP = 'sweep {config} {checkpoint} --images 1 --num-images 1 --rounds 1 --out {work}'
BENCHMARK = 'benchmark {config} --rounds 1 --num-images 1 --device cpu'
FLOPS = 'get_flops {config} --shape 64'
EXPORT = 'export {config} {checkpoint} --out {work}.onnx'
APP = 'app {config} {checkpoint} --device cpu'

# Lines added to a valid config for training, and expected text in the message.
LINES = [
    ('1 / 0', '{config}'),
    ("custom_imports['imports'] = ['no_such_module']", 'no_such_module'),
    ("default_scope = 'nohost'", "'nohost'"),
    ('del model', 'model'),
    ('model = [1]', '[1]'),
    ('default_hooks = 3', '3'),
    ("custom_hooks = dict(type='A')", "{'type': 'A'}"),
    ('work_dir = 3', '3'),
    ('train_cfg = None', 'train_cfg'),
    ('val_evaluator = None', 'val_evaluator'),
    ("model['type'] = 'MaskRCNN'", 'MaskRCNN'),
    ("default_scope = 'mmdet'", 'SegLocalVisualizer'),
    ("data_preprocessor['size'] = (64,)", '(64,)'),
    ("data_preprocessor['mean'] = [1.0] * 2", '2 values'),
    ("model['test_cfg'] = dict(mode='slide')", 'crop_size'),
    ("model['test_cfg'] = dict(mode='cut')", "'cut'"),
    ("model['keep_ratio_loss'] = dict(type='mmdyn.KeepRatioLoss', loss_weight='x')", "'x'"),
    ("model['teacher'] = 'self'", "'self'"),
    ("model['teacher'] = dict(checkpoint='gone.pth')", 'gone.pth'),
    ("model['teacher'] = dict(checkpoint='{checkpoint}')", 'has predictors'),
    ("load_from = '{files}/other.pth'", 'other.pth'),
    ("load_from = '{files}/list.pth'", 'list.pth'),
    ("train_cfg = dict(type='IterBasedTrainLoop', epochs=3)", "'epochs'"),
    ("param_scheduler = [dict(type='LinearLR', start_factor=2)]", 'start_factor=2'),
    ("val_evaluator = dict(type='NoMetric')", 'NoMetric'),
    ("custom_hooks = [dict(type='mmdyn.KeepRatioHook', bogus=1)]", "'bogus'"),
    ("default_hooks['logger']['interval'] = 0", 'interval=0'),
]
# The same for parts of its model and data.
PARTS = {
    "model['backbone']": [
        ("keep_ratios=(float('nan'), 0.5, 0.3)", '(nan, 0.5, 0.3)'),
        ("keep_ratios=(float('inf'), 0.5, 0.3)", '(inf, 0.5, 0.3)'),
        ('keep_ratios=(True, 0.5, 0.3)', '(True, 0.5, 0.3)'),
        ("keep_ratios=('0.7', 0.5, 0.3)", "('0.7', 0.5, 0.3)"),
        ('keep_ratios=0.7', '0.7'),
        ('keep_ratios=(0.7, 0.5)', '(0.7, 0.5)'),
        ('keep_ratios=(0.3, 0.5, 0.7)', '(0.3, 0.5, 0.7)'),
        ('sparse_blocks=(-1, 1, 2)', '(-1, 1, 2)'),
        ('sparse_blocks=(1, 1, 2)', '(1, 1, 2)'),
        ('sparse_blocks=(1, 2, 4)', '(1, 2, 4)'),
        ('sparse_blocks=()', 'sparse_blocks'),
        ('sparse_stage=4', 'sparse_stage=4'),
        ("sparse_stage='2'", "'2'"),
        ('keep_ratio=0.7', "'keep_ratio'"),
        ("policy=dict(type='mmdyn.NoPolicy')", 'mmdyn.NoPolicy'),
        ("policy=dict(type='mmdyn.ThresholdPolicy', threshold=2)", '2'),
        ("policy=dict(type='mmdyn.ThresholdPolicy', thres=.5)", "'thres'"),
        ("policy=dict(type='mmdyn.RandomPolicy', seed='x')", "'x'"),
        ("policy='TopK'", "'TopK'"),
        ('num_heads=(1, 1, 3, 2)', 'num_heads=3'),
        ('num_heads=(1, 1, 0, 2)', 'num_heads'),
        ('num_heads=(1, 1, 2)', '(1, 1, 2)'),
        ('window_size=0', 'window_size'),
        ('window_size=4.5', '4.5'),
        ('embed_dims=7', '[56]'),
        ("embed_dims='8'", "'8'"),
        ('depths=4', 'depths'),
        ('depths=(1, 1, -4, 1)', '-4'),
        ('strides=(4, 2, 2, 0)', 'strides'),
        ('mlp_ratio=-1', 'mlp_ratio'),
        ('drop_path_rate=2', '2'),
        ('out_indices=(4,)', 'out_indices=4'),
        ('frozen_stages=9', 'frozen_stages=9'),
        ('in_channels=4', 'in_channels=4'),
        ("init_cfg=dict(type='Pretrained')", "{'type': 'Pretrained'}"),
        ("type='mmdyn.DynamicSwn'", 'mmdyn.DynamicSwn'),
    ],
    "model['decode_head']": [
        ("type='RetinaHead'", 'RetinaHead'),
        ('in_channels=32', 'in_channels is 32'),
        ('in_index=3', 'in_index is 3'),
        ('num_classes=2', 'num_classes=2'),
        ('num_classes=0', '0'),
    ],
    "train_dataloader['dataset']": [
        ("data_prefix=dict(img_path='nowhere')", '/nowhere'),
        ("img_suffix='.jpg'", '.jpg'),
        ("metainfo=dict(classes=tuple('abcd'))", '4 classes'),
        ("type='NoDataset'", "'NoDataset'"),
        ("pipeline=[dict(type='LoadNothing')]", 'LoadNothing'),
        ("pipeline=[dict(type='RandomCrop', crop_size=(0, 0))]", '(0, 0)'),
    ],
}
# Command-line overrides of the config.
OPTIONS = [
    ('nonsense', "'nonsense'"),
    ('=3', "'=3'"),
    ('a=[0.7,0.5', 'a=[0.7,0.5'),
    ("'custom_hooks=[dict(type=A,x=dict(y=1))]'", 'custom_hooks=[dict(type=A,x=dict(y=1))]'),
    ('model.backbone=3', '3'),
    ('model.backbone.depth=1', "'depth'"),
    ('model.backbone.keep_ratios=0.7', '0.7'),
    ('train_dataloader.batch_size=0', 'batch_size=0'),
    ('train_dataloader.num_workers=-1', 'num_workers'),
    ('train_dataloader.sampler.type=None', 'None'),
    ('train_cfg.val_interval=0', '0'),
    ('train_cfg.max_iters=ten', "'ten'"),
    ('randomness.seed=-1', '-1'),
    ('randomness.seed=abc', "'abc'"),
    ('optim_wrapper.optimizer.lr=-1', 'lr=-1'),
    ('optim_wrapper.optimizer.type=Adamm', "'Adamm'"),
]
# mmseg's own Swin, which is dense.
DENSE = '--cfg-options model.backbone.type=SwinTransformer'
CONVERT = 'convert_checkpoint {checkpoint}'
THRESHOLD = 'model.backbone.policy.type=mmdyn.ThresholdPolicy'
COMMANDS = [
    ('train gone.py', "'gone.py'"),
    ('train mmdyn::upernet_dynswn_mini.py', 'upernet_dynswin_mini.py'),  # the suggestion
    ('train nope::a/b.py', "'nope::a/b.py'"),
    ('train {files}', '{files}'),
    ('train {files}/empty.py --work-dir {work}', 'model'),
    ('train {files}/syntax.py', 'syntax.py'),
    ('train {files}/binary.py', 'binary.py'),
    ('train {files}/list.pth', 'list.pth'),
    ('train {files}/no_base.py', 'gone_base.py'),
    (f'{TRAIN} --bogus', '--bogus'),
    (f'{TRAIN} --data-root nowhere', 'nowhere/images'),
    (f'{TRAIN} --amp', 'AmpOptimWrapper'),
    (f'{TRAIN} --local_rank x', "'x'"),
    (f'{TRAIN} --launcher slurm', 'SLURM_PROCID'),
    ('train {config} --work-dir {files}/empty.py', 'empty.py'),
    ('train {config} --work-dir /proc/mmdyn', '/proc'),
    ("train {config} --work-dir ''", "''"),
    (f'{DETECTOR} --cfg-options model.bbox_head.num_classes=2', 'num_classes=2'),
    (f'{DETECTOR} --cfg-options model.neck.in_channels=8,16,32', '[8, 16, 32]'),
    (f"{DETECTOR} --cfg-options 'train_dataloader.dataset.metainfo.classes=(x,y,z)'", "'x'"),
    (f'{TRAIN} --resume {{files}}/gone.pth', 'gone.pth'),
    (f'{TRAIN} --resume {{checkpoint}}', '{checkpoint}'),
    *((TEST_WITH % f'{name}.pth', f'{name}.pth') for name in ('gone', 'zero', 'truncated')),
    *((TEST_WITH % f'{name}.pth', f'{name}.pth') for name in ('other', 'backbone', 'list')),
    (TEST_WITH % 'dense.pth', '--keep-ratio 1'),
    (f'{TEST} --cfg-options model.backbone.mlp_ratio=2', '(32, 8)'),
    ('test {config} {files} --work-dir {work}', '{files}'),
    ('test {config} {detector_checkpoint} --work-dir {work}', 'detector.pth'),
    ('test {detector} {checkpoint} --work-dir {work}', 'tiny.pth'),
    (f'{TEST} --keep-ratio nan', 'nan'),
    (f'{TEST} --keep-ratios 0.7 0.5', 'has 2'),
    (f'{TEST} --out {{files}}/empty.py', 'empty.py'),
    (f'{TEST} --wait-time -1', '-1'),
    (f'{TEST} --cfg-options test_dataloader=None', 'test_dataloader'),
    ('test {detector} {detector_checkpoint} --out x.txt', 'x.txt'),
    (f'{INFER} --device tpu', 'tpu'),
    (f'{INFER} --batch-size 0', '0'),
    (f'{INFER} --min-score nan', 'nan'),
    (f'{INFER} --tile-ratio 0.5', 'tile_ratio'),
    (f'{INFER} --policy RandomPolicy seed=1.5', 'seed=1.5'),
    (f'{INFER} --out {{files}}/empty.py/x', 'empty.py'),
    ('infer {config} {checkpoint} {files}/empty.py', 'empty.py'),
    ('infer {config} {checkpoint} nowhere.png', 'nowhere.png is no file'),
    (f'{INFER} --keep-ratio 2', 'got 2'),
    (f'{INFER} --policy BestPolicy', 'BestPolicy'),
    (f'{SWEEP} --budget-ms nan', 'nan'),
    (f'{SWEEP} --seed -1', '-1'),
    ('sweep {config} {files}/dense.pth --images 1 --out {work}', 'dense.pth'),
    ('sweep --model ../a {config} {checkpoint}', "'../a'"),
    ('sweep --model .. {config} {checkpoint}', "'..'"),
    (f'{BENCHMARK} --threads two', "'two'"),
    ('sweep --model a {config} {checkpoint} --model a {config} {checkpoint}', 'a, a'),
    ('sweep --model a {config} nowhere.pth', 'nowhere.pth'),
    ('sweep --model a {config} {checkpoint} --budget-ms 9', '--model'),
    ('sweep', '--model'),
    (f'{SWEEP} --model a {{config}} {{checkpoint}}', '--model'),
    (f'{SWEEP} --budget-ms -3', 'above 0, got -3'),
    (f'{SWEEP} --budget-ms 9 --margin 1', 'margin'),
    (f'{SWEEP} --budget-ms 9 --step 0', 'step'),
    (f'{SWEEP} --budget-ms 9 --keep-ratio 0.7', 'one or the other'),
    (f'{SWEEP} --budget-ms 9 --budget-gflops 9', 'not allowed with'),
    (f'{SWEEP} --budget-ms 9 --cfg-options {THRESHOLD}', 'ThresholdPolicy'),
    (f'{SWEEP} --metric mAP', "not measure 'mAP'; it measures aAcc"),
    (f'{SWEEP} --tile-ratio 0.5', 'has none'),
    (f'{SWEEP} --dense-twin {{config}} {{checkpoint}}', 'needs a dense model'),
    (f'{BENCHMARK} --min-seconds nan', 'nan'),
    (f'{BENCHMARK} --shape 0 64', '0'),
    (f'{BENCHMARK} --device cuda:99', 'cuda:99'),
    (f'{BENCHMARK} --keep-ratios 0.3 0.5 0.7', '0.3'),
    (f'{BENCHMARK} --rounds 0', 'got 0'),
    (f'{BENCHMARK} --images {{files}}', '{files}'),  # without pictures
    (f'{BENCHMARK} --policy ThresholdPolicy 0.5', '0.5'),
    (f'{BENCHMARK} --policy ThresholdPolicy threshold=0.4x', 'threshold=0.4x'),
    (f'{BENCHMARK} --out results.txt', 'results.txt'),
    (f'{BENCHMARK} --stock {DENSE}', 'SwinTransformer'),
    (f'{BENCHMARK} --policy RandomPolicy {DENSE}', 'SwinTransformer'),
    (f'{FLOPS} --out {{files}}', '{files}'),
    (f'{FLOPS} --cfg-options default_scope=mmengine', "'mmengine'"),
    (f'{FLOPS} --seed 1.5', "'1.5'"),
    ('get_flops {config}', '--shape --images --num-images'),
    ('get_flops {config} --shape 1 2 3', 'got 3 numbers'),
    ('get_flops {config} --images nowhere', 'nowhere'),
    ('get_flops {config} --num-images 5', '1..4'),
    ('get_flops {config} --num-images 1 --cfg-options val_dataloader=None', 'no val_dataloader'),
    (f'{FLOPS} --num-images 1', 'not allowed with'),
    (f'{FLOPS} --policy ThresholdPolicy threshold=1', 'got 1'),
    (f'{FLOPS} --policy TopKPolicy {DENSE}', 'SwinTransformer'),
    ('get_flops {config} {files}/shapes.pth --shape 64', 'size mismatch'),
    (f'{EXPORT} --shape 0 64', '0x64'),
    (f'{EXPORT} --opset 3', '18 to 22'),
    (f'{EXPORT} --keep-ratio 0.7 --dense', '--dense'),
    ('export {config} https://host/weights.pth', '--out'),
    (f'{EXPORT} --opset 18 --format torch-export', '--opset'),
    (f'{EXPORT} --format tensorrt', 'tensorrt'),
    (f'{EXPORT} --shape 60 64 --dynamic', '60x64: give --shape'),
    (f'{EXPORT} --report .', '--report .'),
    (f'{EXPORT} --images gone.png', 'gone.png'),
    (f'{EXPORT} --cfg-options model.data_preprocessor.size=None', '--shape H W'),
    (f'{EXPORT} --cfg-options {THRESHOLD}', 'ThresholdPolicy'),
    ('export {config} {checkpoint} --out model.pt2', 'model.pt2'),
    (f'{CONVERT} {{work}}.pth --to resnet', "'resnet'"),
    (f'{CONVERT} {{work}}.pth --to dynamic-convnext', 'dynamic-swin, not'),
    (f'{CONVERT} /proc/x.pth --to dynamic-swin', '/proc'),
    (f'{CONVERT} {{checkpoint}} --force --to dynamic-swin', 'to convert'),
    (f'{CONVERT} {{files}}/empty.py --to dynamic-swin', 'empty.py exists'),
    (f'{CONVERT} {{files}} --force --to dynamic-swin', 'is a folder'),
    ('convert_checkpoint https://host/a.pth {work}.pth --to dynamic-swin', 'https://host/a.pth'),
    ('convert_checkpoint {files}/other.pth {work}.pth --to dynamic-vit', "'a.b'"),
    (f'{APP} --port 99999', '99999'),
    (f'{APP} --max-upload inf', 'inf'),
    (f'{APP} --device tpu', 'tpu'),
    ('demo --work-dir {files}/empty.py', 'empty.py'),
    ('demo --seed x --work-dir {work}', "'x'"),
    ('doctor --fix', '--fix'),
]
CASES = [
    *((TRAIN, line, said) for line, said in LINES),
    *(
        (TRAIN, f'{part}.update(dict({setting}))', said)
        for part, settings in PARTS.items()
        for setting, said in settings
    ),
    *((f'{TRAIN} --cfg-options {option}', '', said) for option, said in OPTIONS),
    *((command, '', said) for command, said in COMMANDS),
]
"""Command line, line added to its config, expected text in the message."""

PROCESS = 'train {files}/syntax.py'
"""Run in a separate process as well."""


@pytest.fixture(scope='module')
def world(tmp_path_factory, segmentor, detector):
    """Paths by their placeholders in the tables."""
    files = tmp_path_factory.mktemp('files')
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
    """Invalid configs, and checkpoints that don't fit."""
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
    shapes = {'backbone.norm3.weight': torch.zeros(3)}
    torch.save(dict(state_dict=shapes), folder / 'shapes.pth')
    torch.save([1, 2], folder / 'list.pth')
    (folder / 'zero.pth').touch()
    (folder / 'truncated.pth').write_bytes(checkpoint.read_bytes()[:2000])


def prepared(case, world, tmp_path):
    """The tool, its arguments, and the expected text."""
    command, change, said = case
    names = {**world, 'work': tmp_path / 'work'}
    # Runs of the same name and second share mmengine's process-wide state.
    config = tmp_path / f'{tmp_path.name}.py'
    config.write_text(f'{world["config"].read_text()}\n{fill(change, names)}\n')
    names['config'] = config
    tool, *argv = shlex.split(command)
    return tool, [fill(word, names) for word in argv], fill(said, names)


def fill(text, names):
    """Not format(), as configs are full of braces."""
    for name, value in names.items():
        text = text.replace(f'{{{name}}}', str(value))
    return text


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder and environment."""
    monkeypatch.chdir(tmp_path)
    # Runs in the same second share a logger, whose stream pytest has closed.
    monkeypatch.setattr('logging.raiseExceptions', False)
    monkeypatch.setattr('signal.signal', lambda *_: None)
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)


_SECONDS = {}


def marks(command):
    return [needs_export] if command.startswith('export') else []


@pytest.mark.parametrize(
    'case',
    [pytest.param(case, id=(case[1] or case[0])[:90], marks=marks(case[0])) for case in CASES],
)
def test_one_message_with_the_value_before_any_training(case, world, tmp_path, elsewhere):
    tool, argv, said = prepared(case, world, tmp_path)
    start = time.process_time()
    code, _, error = call(tool, *argv)
    _SECONDS[case] = time.process_time() - start
    assert code == 2, error
    check_message(error, [said])
    assert not [*tmp_path.rglob('*.pth'), *tmp_path.rglob('*.onnx')]
    assert _SECONDS[case] < SECONDS


def test_as_a_process(world, tmp_path, figure):
    tool, argv, said = prepared((PROCESS, '', 'syntax.py'), world, tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / f'{tool}.py'), *argv],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        timeout=10 * SECONDS,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 2
    check_message(done.stderr, [said])
    assert 'Traceback' not in done.stdout
    assert seconds < SECONDS
    figure(SECTION, f'as a process of its own: {PROCESS}', f'{seconds:.1f} s of computing')


def test_what_may_not_be_read_or_written(world, tmp_path, elsewhere, monkeypatch):
    checkpoint = world['checkpoint']
    monkeypatch.setattr('os.access', lambda path, mode, **_: str(path) != str(checkpoint))
    code, _, error = call('test', world['config'], checkpoint, '--work-dir', tmp_path / 'work')
    assert code == 2
    check_message(error, [f'{checkpoint} is not readable', 'change its permissions'])
    monkeypatch.setattr('os.access', lambda path, mode, **_: False)
    code, _, error = call('train', world['config'], '--work-dir', tmp_path / 'work')
    assert code == 2
    check_message(error, [f'{tmp_path} is not writable', 'name another folder'])


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
    tools = Counter(case[0].split()[0] for case in CASES)
    assert {case[0].split()[0] for case in CASES} >= {
        path.stem for path in (ROOT / 'tools').glob('*.py')
    }
    figure(SECTION, 'wrong configs and command lines', len(CASES))
    figure(SECTION, 'of each tool', ', '.join(f'{tool} {n}' for tool, n in tools.most_common()))
    if _SECONDS:
        slowest = max(_SECONDS.values())
        figure(SECTION, 'slowest, in one process', f'{slowest:.1f} s of computing')
