"""Multiply-adds of the paper's models at 224x224, without and with classifiers."""

import pytest
import torch
from mmengine.config import Config

from mmdyn.analysis import count_macs
from mmdyn.config_lookup import find_config
from mmdyn.models import DynamicConvNeXt, DynamicSwin
from mmdyn.registry import MODELS
from mmdyn.sparsity.ratios import falling_keep_ratios

SWIN_S = dict(depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
SWIN_B = dict(depths=(2, 2, 18, 2), embed_dims=128, num_heads=(4, 8, 16, 32))


# In G: dense, and at keep ratios 0.7, 0.5, 0.3.
@pytest.mark.parametrize(
    ('backbone', 'arguments', 'dense', 'sparse'),
    [
        (DynamicSwin, {}, 4.51, 4.06),
        (DynamicSwin, SWIN_S, 8.77, 6.88),
        (DynamicSwin, SWIN_B, 15.47, 12.10),
        (DynamicConvNeXt, dict(arch='tiny'), 4.47, 3.59),
        (DynamicConvNeXt, dict(arch='small'), 8.70, 5.79),
        (DynamicConvNeXt, dict(arch='base'), 15.38, 10.21),
    ],
    ids=['Swin-T', 'Swin-S', 'Swin-B', 'ConvNeXt-T', 'ConvNeXt-S', 'ConvNeXt-B'],
)
def test_multiply_adds_are_the_papers(backbone, arguments, dense, sparse):
    with torch.device('meta'):  # counted by shapes, without the work
        model, x = backbone(**arguments).eval(), torch.zeros(1, 3, 224, 224)
    executed = count_macs(lambda: model(x)) / 1e9
    assert executed == pytest.approx(sparse, rel=0.015)
    model.set_keep_ratios((1.0, 1.0, 1.0))
    whole = count_macs(lambda: model(x)) / 1e9
    assert whole == pytest.approx(dense, rel=0.015)
    print(f'{executed:.3f} sparse, {whole:.3f} dense')  # shown by pytest -rP


# In G, as published; those of DeiT-256, DeiT-S and LV-ViT-S at 0.5 are cut after a decimal.
@pytest.mark.parametrize(
    ('name', 'ratio', 'published'),
    [
        ('dyndeit-256', 0.7, 1.37),
        ('dyndeit-s', 0.7, 2.97),
        ('dyndeit-b', 0.7, 11.4),
        ('dynlvvit-s', 0.5, 3.78),
        ('dynlvvit-s', 0.7, 4.6),
        ('dynlvvit-m', 0.7, 8.5),
        ('dynconvnext-t', 0.7, 3.6),
        ('dynconvnext-t', 0.9, 3.9),
        ('dynconvnext-s', 0.7, 5.8),
        ('dynconvnext-s', 0.9, 6.8),
        ('dynconvnext-b', 0.7, 10.2),
        ('dynconvnext-b', 0.9, 11.9),
        ('dynswin-t', 0.7, 4.0),
        ('dynswin-s', 0.7, 6.9),
        ('dynswin-b', 0.7, 12.1),
    ],
)
def test_classifiers_execute_what_is_published(name, ratio, published):
    config = Config.fromfile(find_config(f'mmdyn::imagenet/{name}_imagenet.py'))
    with torch.device('meta'):
        model, x = MODELS.build(config.model).eval(), torch.zeros(1, 3, 224, 224)
    kind = getattr(model.backbone, 'keep_ratio_ladder', 'linear')
    model.backbone.set_keep_ratios(falling_keep_ratios(ratio, 3, kind))
    assert count_macs(lambda: model(x)) / 1e9 == pytest.approx(published, rel=0.015)
