"""Multiply-adds of the paper's models at 224x224, without classifiers."""

import pytest
import torch

from mmdyn.analysis import count_macs
from mmdyn.models import DynamicConvNeXt, DynamicSwin

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
