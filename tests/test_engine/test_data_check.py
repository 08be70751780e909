import os
import re

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmdyn.engine.data_check import check_data


@DATASETS.register_module()
class PlainDataset(BaseDataset):
    """Checked like any other."""

    how_to_get = 'Ask the neighbour for PlainDataset.'


@DATASETS.register_module()
class SelfMadeDataset(BaseDataset):
    """Generates its files."""

    builds_itself = True


@DATASETS.register_module()
class RootedDataset(BaseDataset):
    """Has a default root."""

    def __init__(self, data_root='nowhere/rooted', data_prefix=dict(img='pictures')):  # noqa: B006
        super().__init__(data_root=data_root, data_prefix=data_prefix)


def seg(root, **changes):
    prefix = dict(img_path='images', seg_map_path='annotations')
    return dict(type='PlainDataset', data_root=str(root), data_prefix=prefix) | changes


def coco(root, **changes):
    paths = dict(ann_file='annotations/train.json', data_prefix=dict(img='train/'))
    return dict(type='PlainDataset', data_root=str(root), **paths) | changes


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ('images/a.png', 'annotations/a.png', 'annotations/train.json', 'train/deep/a.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(dataset, scope=None, **others):
    """Message on a data set's missing files; '' if all exist."""
    try:
        check_data(
            Config(dict(default_scope=scope, t_dataloader=dict(dataset=dataset), **others)),
            ['t_dataloader', 'none_dataloader'],
        )
    except FileNotFoundError as error:
        return str(error)
    return ''


def missing(dataset):
    """Path in the config, path and reason of each missing file."""
    found = re.findall(r'^  (.*)  \(t_dataloader\.(.*): (.*)\)$', message(dataset), re.MULTILINE)
    return [(place, path, reason) for path, place, reason in found]


def test_missing_folders_and_files_are_named(root):
    assert message(seg(root)) == message(coco(root)) == ''
    (root / 'annotations/train.json').unlink()
    (root / 'images/a.png').unlink()
    (root / 'images/empty').mkdir()
    assert missing(coco(root)) == [('dataset', f'{root}/annotations/train.json', 'does not exist')]
    assert missing(seg(root)) == [('dataset', f'{root}/images', 'has no files')]
    os.mkfifo(root / 'annotations/train.json')  # reading it may never end
    assert missing(coco(root))[0][2] == 'is neither a file nor a folder'


@pytest.mark.parametrize(
    ('dataset', 'path'),
    [
        (seg('.'), None),
        (dict(type='PlainDataset', data_root='x', data_prefix=dict(img='ROOT/images')), None),
        (dict(type='PlainDataset', ann_file='ROOT/annotations/train.json'), None),
        (dict(type='PlainDataset', data_root='x', data_prefix=dict(img='')), 'x'),
        (dict(type='RootedDataset'), 'nowhere/rooted/pictures'),
    ],
)
def test_paths_are_joined_as_mmengine_joins_them(root, dataset, path):
    def fill(value):
        if isinstance(value, dict):
            return {key: fill(one) for key, one in value.items()}
        return value.replace('ROOT', str(root))

    expected = [('dataset', f'{root}/{path}', 'does not exist')] if path else []
    assert missing(fill(dataset)) == expected


def test_wrapped_data_sets_are_looked_into(root):
    repeated = dict(type='RepeatDataset', times=2, dataset=seg(root / 'x'))
    assert missing(repeated)[0][:2] == ('dataset.dataset', f'{root}/x/images')
    several = dict(type='ConcatDataset', datasets=[seg(root), repeated])
    assert missing(several)[0][:2] == ('dataset.datasets.1.dataset', f'{root}/x/images')


@pytest.mark.parametrize(
    'dataset',
    [
        dict(type='SelfMadeDataset', data_root='gone'),
        seg('gone', backend_args=dict(backend='s3')),
        coco('s3://some/where/'),  # mmengine finds the backend by the prefix
        seg('http://some/where'),
    ],
)
def test_what_needs_no_local_files_is_left_out(dataset):
    assert message(dataset) == ''


@pytest.mark.parametrize('nested', [False, True])
def test_metrics_that_read_annotations_are_looked_at(root, nested):
    metric = [dict(type='A'), dict(type='CocoMetric', ann_file=f'{root}/gone.json')]
    others = dict(t_evaluator=dict(metrics=metric) if nested else metric)
    place = 'metrics.1' if nested else '1'
    assert f't_evaluator.{place}.ann_file=FILE' in message(coco(root), **others)
    assert message(dict(type='SelfMadeDataset'), **others) == ''


def test_an_unknown_type_is_an_error():
    with pytest.raises(KeyError, match=r"t_dataloader\.dataset\.type='Wrong'"):
        message(dict(type='Wrong'))


def test_the_message_says_what_to_do(tmp_path):
    said = message(dict(type='RepeatDataset', dataset=seg(tmp_path / 'x')))
    assert said.count('Ask the neighbour') == 1
    assert '--cfg-options t_dataloader.dataset.dataset.data_root=FOLDER' in said
    assert 'configs/upernet_dynswin_mini.py' in said


@pytest.mark.parametrize(
    ('host', 'dataset', 'explained'),
    [
        ('mmseg', seg('data/ade/x', type='ADE20KDataset'), 'ADEChallengeData2016.zip'),
        ('mmdet', coco('data/coco/', type='CocoDataset'), 'annotations_trainval2017.zip'),
        ('mmdet', coco('data/nuts', type='CocoDataset'), None),
    ],
)
def test_how_to_get_public_data_is_explained(tmp_path, monkeypatch, host, dataset, explained):
    pytest.importorskip(host)
    monkeypatch.chdir(tmp_path)
    said = message(dataset, host)
    assert f'{tmp_path}/{dataset["data_root"].rstrip("/")}' in said
    assert explained in said if explained else 'http' not in said
