"""The hosts' configs pass the checks of configs."""

import importlib
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdyn.engine.config import load_config
from mmdyn.engine.config_check import check_complete, check_training
from mmdyn.engine.model_check import check_model
from tests.test_reliability.examples import some

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def configs(host):
    """Configs of trainable models, all or some."""
    root = Path(importlib.import_module(host).__file__).parent / '.mim' / 'configs'
    found = sorted(p for p in root.rglob('*.py') if '_base_' not in p.parts)
    return root, some(found, 40)


@pytest.mark.parametrize('host', ['mmseg', 'mmdet'])
def test_they_are_not_refused(host, figure):
    root, paths = configs(host)
    refused, count = {}, 0
    for path in paths:
        try:
            cfg = Config.fromfile(path)
        except Exception:  # needs missing packages or unreleased bases
            continue
        if cfg.get('train_dataloader') is None or cfg.get('model') is None:
            continue  # only a base of others
        init_default_scope(cfg.get('default_scope', host))
        count += 1
        try:
            cfg = load_config(str(path))
            check_complete(cfg, 'test')
            check_training(cfg)
            check_model(cfg, LOADERS)
        except (KeyError, TypeError, ValueError) as error:
            refused[str(path.relative_to(root))] = str(error)
    assert count > len(paths) // 2
    assert refused == {}
    figure("The hosts' own configs", f'of {host}, none refused', count)
