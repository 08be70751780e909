"""Parts of a config, with types in every form."""

import sys

import pytest
import torch
from mmengine.model import PretrainedInit

from mmdyn.config_parts import class_of, is_pretrained, type_name
from mmdyn.models import DynamicConvNeXt, DynamicSwin


@pytest.mark.parametrize(
    'kind', [DynamicSwin, 'mmdyn.DynamicSwin', 'mmdyn.models.DynamicSwin', 'DynamicSwin']
)
def test_a_type_is_a_class_a_registered_name_or_a_whole_one(kind):
    assert type_name(dict(type=kind)) == 'DynamicSwin'
    assert class_of(kind, 'mmdyn') is DynamicSwin


@pytest.mark.parametrize('kind', ['', 'DynamicNothing', 'mmdyn.DynamicNothing', 'no_such.Model'])
def test_a_name_of_nothing_has_no_class(kind):
    assert class_of(kind, None) is None


def test_no_module_is_imported_for_a_name_without_a_dot(tmp_path, monkeypatch):
    (tmp_path / 'mmdyn_tests_nms.py').write_text('raise SystemExit(9)')
    monkeypatch.syspath_prepend(tmp_path)
    assert class_of('mmdyn_tests_nms', 'mmengine') is None
    assert 'mmdyn_tests_nms' not in sys.modules


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_weights_load_by_the_class_too(kind, tmp_path):
    arch = dict(depths=[1, 1, 4, 1], channels=[4, 8, 8, 8])
    first = DynamicConvNeXt(arch)
    torch.save(first.state_dict(), tmp_path / 'weights.pth')
    init_cfg = dict(type=kind, checkpoint=str(tmp_path / 'weights.pth'))
    assert is_pretrained(init_cfg) and not is_pretrained(dict(type='Normal'))
    second = DynamicConvNeXt(arch, init_cfg=init_cfg)
    second.init_weights()
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key
