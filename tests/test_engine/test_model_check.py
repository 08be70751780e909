"""Heads and data that go together, or not."""

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
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
