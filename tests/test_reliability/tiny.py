"""A tiny segmentor and a tiny detector with data and weights, for fault-injection tests."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmdyn.engine.loading import load_model
from tests.test_analysis.test_evaluating import write_coco
from tests.test_tools.segmentation import load_tool, write_config, write_data

DETECTOR = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='mmdyn.DynamicSwin', embed_dims=8, depths=(1, 1, 5, 1),
        num_heads=(1, 1, 2, 4), window_size=4, out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth')),
    neck=dict(in_channels=[16, 32, 64], out_channels=8, start_level=0),
    bbox_head=dict(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=3))
"""
LOADERS = """
default_scope = 'mmdet'
_classes = dict(metainfo=dict(classes=('a', 'b', 'c')))
_dataset = dict(
    type='CocoDataset', data_root='ROOT', ann_file='all.json', data_prefix=dict(img='images'),
    **_classes)
_resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
train_dataloader = dict(
    _delete_=True, batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        filter_cfg=dict(filter_empty_gt=True), pipeline=[
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), _resize,
            dict(type='PackDetInputs')],
        **_dataset))
test_dataloader = dict(
    _delete_=True, batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        test_mode=True, pipeline=[dict(type='LoadImageFromFile'), _resize, dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))],
        **_dataset))
val_dataloader = test_dataloader
test_evaluator = dict(
    _delete_=True, type='CocoMetric', ann_file='ROOT/all.json', metric='bbox')
val_evaluator = test_evaluator
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = []
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
model = dict(backbone=dict(init_cfg=None))
"""


@dataclass(frozen=True)
class Tiny:
    """A model for tools.

    Attributes:
        config: its file.
        checkpoint: random weights.
        data: folder with ``images`` and ``annotations`` or ``all.json``.
    """

    config: Path
    checkpoint: Path
    data: Path


def make_segmentor(folder: Path) -> Tiny:
    """Three classes, four pictures of 64x64."""
    pytest.importorskip('mmseg')
    data = write_data(folder / 'tree')
    return _with_weights(write_config(folder, data), data)


def make_detector(folder: Path) -> Tiny:
    """Three classes, four pictures of 64x64 with one box each."""
    pytest.importorskip('mmdet')
    data = folder / 'coco'
    write_coco(data, 4)
    config, base = folder / 'detector.py', folder / 'base.py'
    base.write_text(DETECTOR)
    config.write_text("_base_ = 'base.py'\n" + LOADERS.replace('ROOT', str(data)))
    return _with_weights(config, data)


def _with_weights(config: Path, data: Path) -> Tiny:
    return Tiny(config, save_weights(config), data)


def save_weights(config: Path) -> Path:
    """Write random weights of a config's model next to it."""
    checkpoint = config.with_suffix('.pth')
    torch.save(dict(state_dict=load_model(str(config)).model.state_dict()), checkpoint)
    return checkpoint


def call(tool: str, *argv: object) -> tuple[int, str, str]:
    """Run a tool in this process; returns its exit code, stdout and stderr.

    Exceptions other than SystemExit propagate.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        try:
            code = load_tool(tool).main([str(arg) for arg in argv])
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def check_message(error: str, said: Iterable[object]) -> None:
    """Check that there is a single error message with the given texts, and no traceback."""
    assert len(re.findall(r'^(?:\S+: )?error: ', error, re.MULTILINE)) == 1, error
    assert 'Traceback' not in error
    message = ' '.join(error[error.index('error: ') :].split())
    for text in said:
        assert str(text) in message
