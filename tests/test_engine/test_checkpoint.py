import os
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler

from mmdyn.converters import reading
from mmdyn.converters.pickles import foreign_names
from mmdyn.converters.reading import (
    DamagedCheckpointError,
    check_checkpoint,
    load_checkpoint,
    read_checkpoint,
)
from mmdyn.engine.checkpoint import check_config_checkpoints


class Hostile:
    """What reading it does can be seen."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def training_checkpoint():
    """What a training of mmengine saves."""
    buffer = HistoryBuffer()
    buffer.update(1.0)
    return dict(
        meta=dict(epoch=0, iter=2, palette=np.zeros((2, 3), np.uint8), score=np.float64(0.5)),
        message_hub=dict(log_scalars=OrderedDict(loss=buffer), runtime_info=OrderedDict(iter=1)),
        state_dict=torch.nn.Linear(2, 2).state_dict(),
        optimizer=torch.optim.AdamW(torch.nn.Linear(2, 2).parameters()).state_dict(),
    )


@pytest.fixture(params=['allowed', 'old-torch'])
def line(request, monkeypatch):
    """The check with torch's list of harmless types, and without, as for torch 2.1."""
    if request.param == 'old-torch':
        monkeypatch.setattr(reading, '_can_allow', lambda: False)
    return request.param


@pytest.mark.usefixtures('line')
@pytest.mark.parametrize('zipped', [True, False])
def test_data_pass(tmp_path, zipped):
    path = tmp_path / 'good.pth'
    torch.save(training_checkpoint(), path, _use_new_zipfile_serialization=zipped)
    check_checkpoint(path)
    assert foreign_names(path) == []


@pytest.mark.usefixtures('line')
@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_refused_and_does_not_run(tmp_path, zipped):
    path, ran = tmp_path / 'hostile.pth', tmp_path / 'ran'
    content = dict(state_dict={}, extra=Hostile(ran))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r'mkdir.*--trust-checkpoint') as refusal:
        check_checkpoint(path)
    assert str(path) in str(refusal.value)
    check_checkpoint(path, trust=True)
    assert not ran.exists()


def test_attributes_of_harmless_types_are_no_way_out(tmp_path):
    """getattr is on mmengine's list, for four methods of its log buffers."""

    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    torch.save(dict(extra=Reach()), tmp_path / 'reach.pth')
    assert foreign_names(tmp_path / 'reach.pth') == ["builtins.getattr (of '__init__')"]


@pytest.mark.usefixtures('line')
def test_damaged_files_are_named(tmp_path):
    path = tmp_path / 'good.pth'
    torch.save(training_checkpoint(), path)
    whole = path.read_bytes()
    for name, content in dict(cut=whole[: len(whole) // 2], empty=b'', text=b'hello ' * 99).items():
        damaged = tmp_path / f'{name}.pth'
        damaged.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=f'{name}.pth is damaged or no checkpoint'):
            check_checkpoint(damaged)
        with pytest.raises(DamagedCheckpointError, match=f'{name}.pth cannot be read'):
            read_checkpoint(damaged, trust=True)
    with pytest.raises(DamagedCheckpointError, match=r'cut\.pth cannot be read'):
        check_checkpoint(tmp_path / 'cut.pth', trust=True)


UNUSUAL = {
    'protocol': (dict(a=1), dict(pickle_protocol=4)),
    'expanded': (torch.zeros(1).expand(10**7), {}),
    'nested keys': ({(1, (2, 3)): 1}, {}),
    'meta': (torch.zeros(3, device='meta'), {}),
    'sparse': (torch.eye(2).to_sparse(), {}),
    'quantised': (torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), {}),
}


@pytest.mark.usefixtures('line')
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', UNUSUAL)
def test_what_is_unusual_is_not_called_damaged_and_read_if_trusted(tmp_path, name):
    content, how = UNUSUAL[name]
    torch.save(content, tmp_path / 'some.pth', **how)
    with pytest.raises(ValueError, match='--trust-checkpoint') as refusal:
        check_checkpoint(tmp_path / 'some.pth')
    assert type(refusal.value) is ValueError
    read_checkpoint(tmp_path / 'some.pth', trust=True)


@pytest.mark.usefixtures('line')
def test_plain_values_in_files_of_any_name_are_read(tmp_path):
    content = dict(empty=b'', more=bytearray(b'ab'), none=bytearray(), anneal=anneal())
    torch.save(content, tmp_path / 'Best_Model.pth')
    check_checkpoint(tmp_path / 'Best_Model.pth')
    assert read_checkpoint(tmp_path / 'Best_Model.pth') == content


def anneal():
    """The function that a OneCycleLR of mmengine's saves."""
    return OneCycleParamScheduler._annealing_cos


def test_names_of_model_zoos_are_mmengines(monkeypatch):
    monkeypatch.setattr(reading, 'get_deprecated_model_names', lambda: dict(old='new'))
    monkeypatch.setitem(reading._MODEL_ZOOS, 'open-mmlab', lambda: dict(new='https://host/a.pth'))
    monkeypatch.setitem(reading._MODEL_ZOOS, 'mmcls', lambda: dict(net='https://host/b.pth'))
    fetched = []
    monkeypatch.setattr(reading, '_fetch', lambda url: fetched.append(url) or url)
    state = {'backbone.a': 1, 'head.b': 2}
    monkeypatch.setattr(reading, 'read_checkpoint', lambda *_: dict(state_dict=state))
    assert load_checkpoint('open-mmlab://old')['state_dict'] == state
    assert load_checkpoint('mmcls://net')['state_dict'] == {'a': 1}
    assert fetched == ['https://host/a.pth', 'https://host/b.pth']


def test_each_machine_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(reading, 'get_dist_info', lambda: (1, 2))
    monkeypatch.setattr(reading, 'barrier', lambda: None)
    downloads = []
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *a, **_: downloads.append(a[0]))
    reading._fetch('https://host/a.pth')
    assert downloads == ['https://host/a.pth']


def test_a_trusted_address_of_a_storage_is_left_to_mmengine(monkeypatch):
    monkeypatch.setattr(reading, 'load_from_ceph', lambda source, map_location: source)
    monkeypatch.setattr(reading, '_trusted', {'s3://b/a.pth'})
    assert load_checkpoint('s3://b/a.pth') == 's3://b/a.pth'


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.pth does not exist'):
        check_checkpoint(tmp_path / 'gone.pth')
    with pytest.raises(FileNotFoundError, match='is no file'):
        check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'address', ['https://host/a.pth', 'torchvision://resnet50', 'open-mmlab://x', 's3://b/a.pth']
)
def test_addresses_pass_unchecked(address):
    check_checkpoint(address)


def test_all_checkpoints_of_a_config_are_looked_at(tmp_path):
    good = tmp_path / 'good.pth'
    torch.save(training_checkpoint(), good)
    init = dict(type='Pretrained', checkpoint=str(good))
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init), pretrained=None), load_from=None))
    check_config_checkpoints(cfg)
    for key, change in {
        'model.backbone.init_cfg.checkpoint': {'model.backbone.init_cfg.checkpoint': 'gone.pth'},
        'model.pretrained': {'model.pretrained': 'gone.pth'},
        'load_from': {'load_from': 'gone.pth'},
    }.items():
        changed = Config(cfg.to_dict())
        changed.merge_from_dict(change)
        with pytest.raises(FileNotFoundError, match=f'^{key}: checkpoint .*gone.pth'):
            check_config_checkpoints(changed)


@pytest.mark.parametrize('source', ['timm://swin_tiny_patch4_window7_224', 'deit_tiny_patch16_224'])
def test_timms_names_are_no_missing_files(source):
    init = dict(type='Pretrained', checkpoint=source)
    check_config_checkpoints(Config(dict(model=dict(backbone=dict(init_cfg=init)))))


@pytest.mark.usefixtures('line')
def test_a_trainings_checkpoint_is_read_as_data(tmp_path):
    torch.save(training_checkpoint(), tmp_path / 'good.pth')
    content = read_checkpoint(tmp_path / 'good.pth')
    assert content['message_hub']['log_scalars']['loss'].current() == 1.0
