"""Names and colours of classes from configs and checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmseg')

from mmseg.datasets import BaseSegDataset, CityscapesDataset
from mmseg.registry import DATASETS

from mmdyn.apis import DynamicInferencer
from mmdyn.engine.config import load_config
from mmdyn.engine.loading import load_model
from mmdyn.engine.predictions import classes_of, named_classes
from tests.test_tools.segmentation import write_config, write_data


@DATASETS.register_module()
class OwnDataset(BaseSegDataset):
    """A user's data set in the host's registry."""

    METAINFO = dict(classes=('front', 'back'), palette=[[1, 2, 3], [4, 5, 6]])


def config(dataset, scope='mmseg', **changes):
    return Config(dict(default_scope=scope, test_dataloader=dict(dataset=dataset), **changes))


@pytest.mark.parametrize(
    ('name', 'count', 'first', 'colour'),
    [
        ('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', 19, 'road', (128, 64, 128)),
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 133, 'person', (220, 20, 60)),
        ('mmdyn::mask_rcnn_dynswin_fruits.py', 3, 'date', None),
        # Without a palette.
        ('mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py', 1203, 'aerosol_can', None),
    ],
)
def test_data_sets_of_the_hosts(name, count, first, colour):
    pytest.importorskip(name.partition('::')[0])
    classes, palette = classes_of(load_config(name))
    assert len(classes) == len(palette) == count
    assert classes[0] == first and colour in (None, palette[0])
    assert len(set(palette)) > min(count, 200) / 2


@pytest.mark.parametrize(
    'dataset',
    [
        dict(type='OwnDataset'),
        dict(type=OwnDataset),
        dict(
            type='ConcatDataset',
            datasets=[dict(type='RepeatDataset', times=2, dataset=dict(type='OwnDataset'))],
        ),
    ],
)
def test_ones_own_data_set_wrapped_or_given_as_a_class(dataset):
    assert classes_of(config(dataset)) == (('front', 'back'), ((1, 2, 3), (4, 5, 6)))


def test_a_part_of_a_data_sets_classes_keeps_its_colours():
    chosen = dict(type=CityscapesDataset, metainfo=dict(classes=('car', 'new', 'road')))
    classes, palette = classes_of(config(chosen))
    assert classes == ('car', 'new', 'road')
    assert palette[0] == (0, 0, 142) and palette[2] == (128, 64, 128)
    assert palette[1] not in (palette[0], palette[2])


def test_names_in_a_file_and_in_the_validation_set(tmp_path):
    (tmp_path / 'names.txt').write_text('sky\nsea\n')
    dataset = dict(type='BaseSegDataset', metainfo=dict(classes=str(tmp_path / 'names.txt')))
    cfg = Config(dict(default_scope='mmseg', val_dataloader=dict(dataset=dataset)))
    assert classes_of(cfg)[0] == ('sky', 'sea')
    dataset['metainfo'] = dict(classes='sky')
    with pytest.raises(ValueError, match="'sky'"):
        classes_of(config(dataset))


@pytest.mark.parametrize('palette', [None, 'random', [(9, 8, 7)]])
def test_colours_that_are_not_there_are_chosen(palette):
    _, colours = named_classes(dict(classes=['a', 'b', 'c'], palette=palette))
    assert len(set(colours)) == 3
    assert (colours[0] == (9, 8, 7)) is isinstance(palette, list)
    with pytest.raises(ValueError, match=r'\[1, 2\]'):
        named_classes(dict(classes=['a'], palette=[[1, 2]]))


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=('x', 'y', 'z'), palette=[[1, 1, 1]] * 3)),
        dict(CLASSES=('x', 'y', 'z'), PALETTE=[[1, 1, 1]] * 3),  # of mmcv 1
    ],
)
def test_a_checkpoint_names_classes_where_the_config_does_not(meta, tmp_path):
    path = Path(write_config(tmp_path, write_data(tmp_path / 'data')))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join(line for line in lines if 'metainfo=' not in line))
    checkpoint = tmp_path / 'weights.pth'
    state = load_model(str(path)).model.state_dict()
    with pytest.raises(ValueError, match='has class names'):
        DynamicInferencer(str(path), device='cpu')
    torch.save(dict(state_dict=state, meta=meta), checkpoint)
    infer = DynamicInferencer(str(path), str(checkpoint), device='cpu')
    assert infer.classes == ('x', 'y', 'z') and set(infer.palette) == {(1, 1, 1)}
    result = next(infer(np.zeros((64, 64, 3), np.uint8)))
    assert set(result.to_dict()['classes']) <= {'x', 'y', 'z'}
