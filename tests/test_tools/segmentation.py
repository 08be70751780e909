"""A tiny segmentor with data and config, for testing the tools."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[127.0] * 3, std=[60.0] * 3, size=(64, 64),
    seg_pad_val=255)
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder', data_preprocessor=data_preprocessor,
    backbone=dict(
        type='mmdyn.DynamicSwin', embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2),
        window_size=4, drop_path_rate=0.1, out_indices=(3,)),
    decode_head=dict(
        type='FCNHead', in_channels=64, in_index=0, channels=8, num_convs=1, num_classes=3,
        norm_cfg=norm_cfg, dropout_ratio=0.1,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0)),
    test_cfg=dict(mode='whole'))
_load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
_dataset = dict(
    type='BaseSegDataset', data_root='DATA_ROOT', img_suffix='.png',
    metainfo=dict(classes=('a', 'b', 'c'), palette=[[0] * 3, [9] * 3, [99] * 3]),
    data_prefix=dict(img_path='images', seg_map_path='annotations'))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        pipeline=[*_load, dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')],
        **_dataset))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=[*_load, dict(type='PackSegInputs')], **_dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
    visualization=dict(type='SegVisualizationHook'))
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
"""


def write_data(root: Path, count: int = 4) -> Path:
    """Write a few pictures of 64x64 with label maps; returns the folder."""
    generator = np.random.default_rng(0)
    for folder in ('images', 'annotations'):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        labels = np.kron(generator.integers(0, 3, (4, 4)), np.ones((16, 16))).astype(np.uint8)
        picture = (labels[..., None] * 80 + generator.integers(0, 80, (64, 64, 3))).astype(np.uint8)
        Image.fromarray(picture).save(root / 'images' / f'{index}.png')
        Image.fromarray(labels).save(root / 'annotations' / f'{index}.png')
    return root


def write_config(folder: Path, data: Path) -> Path:
    """Write a config with a sparse backbone and the stock model.type; returns its path."""
    path = folder / 'tiny.py'
    path.write_text(CONFIG.replace('DATA_ROOT', str(data)))
    return path


def load_tool(name: str) -> ModuleType:
    """Import a tool by its path, as importing mmseg once for many runs saves minutes."""
    # Unlike separate processes, runs with one name would share these, and their folders.
    for kind in (MMLogger, MessageHub, Visualizer, *Visualizer.__subclasses__()):
        kind._instance_dict.clear()
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
