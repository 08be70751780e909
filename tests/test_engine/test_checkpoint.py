import os
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmdyn.engine import checkpoint
from mmdyn.engine.checkpoint import (
    check_checkpoint,
    check_config_checkpoints,
    foreign_names,
    read_checkpoint,
)


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
        monkeypatch.setattr(checkpoint, '_can_allow', lambda: False)
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
        for trust in (False, True):
            with pytest.raises(ValueError, match=f'{name}.pth is damaged or no checkpoint'):
                check_checkpoint(damaged, trust)


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


def test_a_trainings_checkpoint_is_read_as_data(tmp_path):
    torch.save(training_checkpoint(), tmp_path / 'good.pth')
    content = read_checkpoint(tmp_path / 'good.pth')
    assert content['message_hub']['log_scalars']['loss'].current() == 1.0


def test_where_torch_knows_no_harmless_types_reading_needs_trust(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, '_can_allow', lambda: False)
    torch.save(training_checkpoint(), tmp_path / 'good.pth')
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        read_checkpoint(tmp_path / 'good.pth')
    assert read_checkpoint(tmp_path / 'good.pth', trust=True)['meta']['iter'] == 2
