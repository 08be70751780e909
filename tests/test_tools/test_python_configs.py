"""The tools on mmengine's pure-Python configs, which have classes as types."""

import json

import pytest

pytest.importorskip('mmseg')

from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmseg.models import EncoderDecoder

from mmdyn.engine.config import load_config
from mmdyn.engine.distributed import revert_sync_bn, use_cpu_wrapper
from tests.test_reliability.tiny import call
from tests.test_tools.segmentation import write_data

BASE = """
from mmcv.transforms import LoadImageFromFile, RandomFlip
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmseg.datasets import BaseSegDataset, LoadAnnotations, PackSegInputs
from mmseg.evaluation import IoUMetric
from mmseg.models import CrossEntropyLoss, EncoderDecoder, FCNHead, SegDataPreProcessor
from mmseg.models import SwinTransformer
from mmseg.visualization import SegLocalVisualizer
from torch.nn import SyncBatchNorm
from torch.optim import AdamW

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor, mean=[127.0] * 3, std=[60.0] * 3, size=(64, 64),
        seg_pad_val=255),
    backbone=dict(
        type=SwinTransformer, embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2),
        window_size=4, out_indices=(3,)),
    decode_head=dict(
        type=FCNHead, in_channels=64, in_index=0, channels=8, num_convs=1, num_classes=3,
        norm_cfg=dict(type=SyncBatchNorm), loss_decode=dict(type=CrossEntropyLoss)),
    test_cfg=dict(mode='whole'))
load = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations)]
dataset = dict(
    type=BaseSegDataset, data_root='DATA_ROOT', img_suffix='.png',
    metainfo=dict(classes=('a', 'b', 'c'), palette=[[0] * 3, [9] * 3, [99] * 3]),
    data_prefix=dict(img_path='images', seg_map_path='annotations'))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        **dataset,
        pipeline=[*load, dict(type=RandomFlip, prob=0.5), dict(type=PackSegInputs)]))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(**dataset, pipeline=[*load, dict(type=PackSegInputs)]))
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = val_evaluator
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3))
train_cfg = dict(type=IterBasedTrainLoop, max_iters=1, val_interval=9)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=1))
visualizer = dict(type=SegLocalVisualizer, name='python_configs')
log_processor = dict(by_epoch=False)
"""
SPARSE = """
from mmengine.config import read_base

with read_base():
    from .base import *
from mmdyn.models import DynamicSwin

model['backbone'].update(type=DynamicSwin)
"""
OWN = """
from mmengine.config import read_base

with read_base():
    from .sparse import *
from tests.test_tools.test_python_configs import Own

model.update(type=Own)
"""


class Own(EncoderDecoder):
    """A custom segmentor, in no registry."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs and data."""
    folder = tmp_path_factory.mktemp('python_configs')
    data = write_data(folder / 'tree')
    for name, text in dict(base=BASE, sparse=SPARSE, own=OWN).items():
        (folder / f'{name}.py').write_text(text.replace('DATA_ROOT', str(data)))
    return folder


@pytest.fixture(scope='module', params=['sparse', 'own'])
def trained(request, folder):
    """A config, and the folder of its training."""
    config, work = folder / f'{request.param}.py', folder / f'work_{request.param}'
    code, _, error = call('train', config, '--work-dir', work)
    assert code == 0, error
    return config, work


def test_it_is_trained_with_the_ratio_loss(trained):
    _, work = trained
    (log,) = work.glob('*/*.log')
    assert 'loss_keep_ratio' in log.read_text()
    longer = ('--cfg-options', 'train_cfg.max_iters=2')
    code, _, error = call('train', trained[0], '--work-dir', work, '--resume', *longer)
    assert code == 0, error
    assert (work / 'iter_2.pth').is_file()


@pytest.mark.parametrize('dumped', [False, True])
def test_it_is_tested_and_infers_as_written_and_as_dumped(trained, dumped, tmp_path):
    config, work = trained
    if dumped:
        config = work / config.name
    checkpoint = work / 'iter_1.pth'
    code, _, error = call('test', config, checkpoint, '--work-dir', tmp_path / 'test')
    assert code == 0, error
    (metrics,) = (tmp_path / 'test').glob('*/*.json')
    # 4x4 locations.
    assert json.loads(metrics.read_text())['keep_ratio_0'] == 11 / 16
    pictures = work.parent / 'tree' / 'images'
    code, _, error = call('infer', config, checkpoint, pictures, '--out', tmp_path / 'out')
    assert code == 0, error
    code, out, error = call('get_flops', config, '--images', pictures, '--keep-ratio', '0.5')
    assert code == 0, error
    assert 'kept 0.50, 0.25, 0.06' in ' '.join(out.split())


def test_a_model_of_an_unknown_scope_says_whose_it_is(folder):
    assert load_config(str(folder / 'sparse.py')).default_scope == 'mmseg'
    assert load_config(str(folder / 'base.py')).default_scope == 'mmseg'


def test_classes_of_norms_hooks_and_wrappers_are_known_by_name(folder):
    cfg = load_config(str(folder / 'sparse.py'))
    assert revert_sync_bn(cfg) == 1
    assert cfg.model.decode_head.norm_cfg.type == 'BN'
    cfg = Config(dict(model_wrapper_cfg=dict(type=MMDistributedDataParallel)))
    use_cpu_wrapper(cfg)
    assert cfg.model_wrapper_cfg.device_ids is None
    assert 'device_ids' in cfg.model_wrapper_cfg
