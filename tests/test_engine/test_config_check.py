import pytest
import torch
from mmengine.config import Config

from mmdyn.engine.config_check import check_checkpoints


def test_all_checkpoints_of_a_config_are_looked_at(tmp_path):
    good = tmp_path / 'good.pth'
    torch.save(dict(state_dict={}), good)
    init = dict(type='Pretrained', checkpoint=str(good))
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init), pretrained=None), load_from=None))
    check_checkpoints(cfg)
    for key, change in {
        'model.backbone.init_cfg.checkpoint': {'model.backbone.init_cfg.checkpoint': 'gone.pth'},
        'model.pretrained': {'model.pretrained': 'gone.pth'},
        'load_from': {'load_from': 'gone.pth'},
    }.items():
        changed = Config(cfg.to_dict())
        changed.merge_from_dict(change)
        with pytest.raises(FileNotFoundError, match=f'^{key}: checkpoint .*gone.pth'):
            check_checkpoints(changed)


def test_timms_names_are_no_missing_files():
    init = dict(type='Pretrained', checkpoint='timm://swin_tiny_patch4_window7_224')
    check_checkpoints(Config(dict(model=dict(backbone=dict(init_cfg=init)))))
