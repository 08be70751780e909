import os

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmdyn.engine.data_check import check_data, find_missing


@DATASETS.register_module()
class PlainDataset(BaseDataset):
    """Checked like any other."""

    how_to_get = 'Ask the neighbour for PlainDataset.'


@DATASETS.register_module()
class SelfMadeDataset(BaseDataset):
    """Makes its files."""

    builds_itself = True


@DATASETS.register_module()
class RootedDataset(BaseDataset):
    """Brings its root as a default."""

    def __init__(self, data_root='nowhere/rooted', data_prefix=dict(img='pictures')):  # noqa: B006
        super().__init__(data_root=data_root, data_prefix=data_prefix)


def seg(root, **changes):
    prefix = dict(img_path='images', seg_map_path='annotations')
    return dict(type='PlainDataset', data_root=str(root), data_prefix=prefix, **changes)


def coco(root, **changes):
    return dict(
        type='PlainDataset',
        data_root=str(root),
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        **changes,
    )


@pytest.fixture
def root(tmp_path):
    for name in ('images/a.png', 'annotations/a.png', 'annotations/train.json', 'train/deep/a.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def missing(dataset):
    return [(item.place, item.path, item.reason) for item in find_missing(dataset, 'd')]


def test_data_that_are_there_pass(root):
    assert missing(seg(root)) == missing(coco(root)) == []
    cfg = Config(dict(train_dataloader=dict(dataset=seg(root)), val_dataloader=None))
    check_data(cfg, ('train_dataloader', 'val_dataloader', 'test_dataloader'))


def test_missing_folders_and_files_are_named(root):
    (root / 'annotations/train.json').unlink()
    (root / 'images/a.png').unlink()
    (root / 'images/empty').mkdir()
    assert missing(coco(root)) == [('d', f'{root}/annotations/train.json', 'does not exist')]
    assert missing(seg(root)) == [('d', f'{root}/images', 'holds no files')]


def test_paths_are_joined_as_mmengine_joins_them(root, monkeypatch):
    monkeypatch.chdir(root)
    assert missing(seg('.')) == []
    absolute = dict(type='PlainDataset', data_root='x', data_prefix=dict(img=f'{root}/images'))
    assert missing(absolute) == []
    no_root = dict(type='PlainDataset', ann_file=f'{root}/annotations/train.json')
    assert missing(no_root) == []
    only_root = dict(type='PlainDataset', data_root='x', data_prefix=dict(img=''))
    assert missing(only_root) == [('d', f'{root}/x', 'does not exist')]
    defaults = dict(type='RootedDataset')
    assert missing(defaults) == [('d', f'{root}/nowhere/rooted/pictures', 'does not exist')]


def test_wrapped_data_sets_are_looked_into(root):
    repeated = dict(type='RepeatDataset', times=2, dataset=seg(root / 'x'))
    assert missing(repeated)[0][:2] == ('d.dataset', f'{root}/x/images')
    several = dict(type='ConcatDataset', datasets=[seg(root), repeated])
    assert missing(several)[0][:2] == ('d.datasets.1.dataset', f'{root}/x/images')


def test_what_needs_no_files_is_left_out():
    assert missing(dict(type='SelfMadeDataset', data_root='gone')) == []
    assert missing(seg('gone', backend_args=dict(backend='s3'))) == []
    assert missing(seg('gone', backend_args=dict(backend='local')))
    # mmengine finds the backend by the prefix.
    assert missing(coco('s3://some/where/')) == missing(seg('http://some/where')) == []


def test_what_may_never_end_is_not_read(root):
    path = root / 'annotations/train.json'
    path.unlink()
    os.mkfifo(path)
    assert missing(coco(root)) == [('d', str(path), 'is neither a file nor a folder')]


def test_metrics_that_read_annotations_are_looked_at(root):
    metric = dict(type='CocoMetric', ann_file=f'{root}/gone.json')
    cfg = dict(val_dataloader=dict(dataset=coco(root)), val_evaluator=[dict(type='A'), metric])
    with pytest.raises(FileNotFoundError, match=r'val_evaluator\.1\.ann_file=FILE'):
        check_data(Config(cfg), ['val_dataloader'])
    cfg['val_evaluator'] = dict(metrics=[metric])
    with pytest.raises(FileNotFoundError, match=r'val_evaluator\.metrics\.0\.ann_file=FILE'):
        check_data(Config(cfg), ['val_dataloader'])
    cfg['val_dataloader']['dataset'] = dict(type='SelfMadeDataset')
    check_data(Config(cfg), ['val_dataloader'])


def test_an_unknown_type_is_an_error():
    with pytest.raises(KeyError, match=r"d\.type='Wrong'"):
        missing(dict(type='Wrong'))


def test_the_message_says_what_to_do(tmp_path):
    loaders = dict(
        train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=seg(tmp_path / 'x'))),
        val_dataloader=dict(dataset=seg(tmp_path / 'x')),
    )
    with pytest.raises(FileNotFoundError) as error:
        check_data(Config(loaders), tuple(loaders))
    message = str(error.value)
    assert f'{tmp_path}/x/annotations  (val_dataloader.dataset: does not exist)' in message
    assert message.count('Ask the neighbour') == 1
    assert '--cfg-options train_dataloader.dataset.dataset.data_root=FOLDER' in message
    assert 'val_dataloader.dataset.data_root=FOLDER' in message
    assert 'configs/upernet_dynswin_mini.py' in message


def test_ade20k_and_coco_are_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip('mmseg')
    ade = dict(seg('data/ade/ADEChallengeData2016'), type='ADE20KDataset')
    cfg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=ade)))
    with pytest.raises(FileNotFoundError) as error:
        check_data(cfg, ['train_dataloader'])
    assert 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip' in str(
        error.value
    )
    assert f'{tmp_path}/data/ade/ADEChallengeData2016/images ' in str(error.value)
    pytest.importorskip('mmdet')
    for root, explained in (('data/coco/', True), ('data/nuts', False)):
        cfg = Config(
            dict(
                default_scope='mmdet',
                train_dataloader=dict(dataset=dict(coco(root), type='CocoDataset')),
            )
        )
        with pytest.raises(FileNotFoundError) as error:
            check_data(cfg, ['train_dataloader'])
        assert ('annotations_trainval2017.zip' in str(error.value)) == explained
