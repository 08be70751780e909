"""Checks that heads and data match."""

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModule
from mmengine.registry import DATASETS

from mmdyn.engine.model_check import check_model


@DATASETS.register_module()
class ThreeClasses(BaseDataset):
    """An empty data set."""

    METAINFO = dict(classes=('a', 'b', 'c'))


class Free(BaseModule):
    """A backbone without an argument for channels."""


class Default(BaseModule):
    """A backbone for pictures with three channels."""

    def __init__(self, in_channels=3):
        super().__init__()


def cascade(*numbers):
    heads = [dict(type='Head', num_classes=number) for number in numbers]
    return dict(type='Cascade', roi_head=dict(bbox_head=heads))


def normalising(backbone, values):
    return dict(backbone=backbone, data_preprocessor=dict(mean=[1.0] * values))


@pytest.mark.parametrize(
    ('model', 'said'),
    [
        (cascade(3, 3), None),
        (cascade(3, 2), r'3 classes, but model\.roi_head\.bbox_head\.1\.num_classes=2 is lower'),
        (normalising(dict(type=Default), 4), 'mean has 4 values'),
        (normalising(dict(type=Default), 3), None),
        (normalising(dict(type=Default, in_channels=4), 4), None),
        (normalising(dict(type=Default, in_channels=4), 3), 'mean has 3 values'),
        (normalising(dict(type=Free), 4), None),
        (normalising(dict(type='NoSuchBackbone'), 4), None),  # refused when it is built
    ],
)
def test_model_and_data_have_to_go_together(model, said):
    cfg = Config(dict(model=model, train_dataloader=dict(dataset=dict(type='ThreeClasses'))))
    if said is None:
        check_model(cfg, ['train_dataloader'])
    else:
        with pytest.raises(ValueError, match=said):
            check_model(cfg, ['train_dataloader'])
