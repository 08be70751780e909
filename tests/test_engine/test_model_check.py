"""Heads and data that go together, or not."""

import contextlib

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModule
from mmengine.registry import DATASETS

from mmdyn.engine.model_check import check_model


@DATASETS.register_module()
class ThreeClasses(BaseDataset):
    """Of nothing."""

    METAINFO = dict(classes=('a', 'b', 'c'))


@pytest.mark.parametrize('numbers', [(3, 3), (3, 2)])
def test_every_head_of_a_cascade_is_looked_at(numbers):
    heads = [dict(type='Head', num_classes=number) for number in numbers]
    model = dict(type='Cascade', roi_head=dict(bbox_head=heads))
    cfg = Config(dict(model=model, train_dataloader=dict(dataset=dict(type='ThreeClasses'))))
    if numbers == (3, 3):
        check_model(cfg, ['train_dataloader'])
    else:
        said = r'3 classes and model\.roi_head\.bbox_head\.1\.num_classes=2 fewer'
        with pytest.raises(ValueError, match=said):
            check_model(cfg, ['train_dataloader'])


class Free(BaseModule):
    """A backbone whose channels are nobody's business."""


class Default(BaseModule):
    """A backbone of pictures with three channels."""

    def __init__(self, in_channels=3):
        super().__init__()


@pytest.mark.parametrize(
    ('backbone', 'values', 'refused'),
    [
        (dict(type=Default), 4, True),
        (dict(type=Default), 3, False),
        (dict(type=Default, in_channels=4), 4, False),
        (dict(type=Default, in_channels=4), 3, True),
        (dict(type=Free), 4, False),
        (dict(type='NoSuchBackbone'), 4, False),  # refused when it is built
    ],
)
def test_the_mean_has_a_value_for_each_channel(backbone, values, refused):
    cfg = Config(dict(model=dict(backbone=backbone, data_preprocessor=dict(mean=[1.0] * values))))
    said = pytest.raises(ValueError, match=f'has {values} values, one for each channel')
    with said if refused else contextlib.nullcontext():
        check_model(cfg, [])
