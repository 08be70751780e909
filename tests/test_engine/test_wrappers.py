"""Unwrapping of models, for hooks and tools."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')

from mmengine.model import BaseTTAModel, ExponentialMovingAverage

from mmdyn.engine.hooks.schedules import parts_of_runner, sparse_backbone
from mmdyn.engine.recording import record
from mmdyn.engine.wrappers import unwrapped
from mmdyn.models import DynamicSwin


class Model(nn.Module):
    """A minimal host model."""

    def __init__(self):
        super().__init__()
        self.backbone = DynamicSwin(
            embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2), window_size=4
        )

    test_step = None  # needed by mmengine's wrapper for test-time augmentation


class Merging(BaseTTAModel):
    merge_preds = None


class Sharded(nn.Module):
    """Like FSDP's and DeepSpeed's wrappers: another attribute, and ``module`` is a property."""

    def __init__(self, model):
        super().__init__()
        self._wrapped = model

    @property
    def module(self):
        return self._wrapped


def compiled(model):
    return torch.compile(model, backend='eager')


@pytest.mark.parametrize(
    'wrap',
    [
        lambda model: model,
        nn.DataParallel,
        Merging,
        ExponentialMovingAverage,
        Sharded,
        compiled,
        lambda model: nn.DataParallel(Merging(compiled(model))),
    ],
    ids=['none', 'parallel', 'tta', 'ema', 'sharded', 'compiled', 'all'],
)
@pytest.mark.parametrize('wrap_backbone', [lambda backbone: backbone, compiled])
def test_hooks_and_recordings_find_the_backbone_inside(wrap, wrap_backbone):
    model = Model()
    model.backbone = wrap_backbone(model.backbone)
    wrapped = wrap(model).eval()
    assert type(unwrapped(wrapped)) is Model
    backbone = unwrapped(unwrapped(wrapped).backbone)
    assert type(backbone) is DynamicSwin
    runner = SimpleNamespace(model=wrapped)
    assert sparse_backbone(runner, None) is backbone
    assert parts_of_runner(runner, None) == [backbone]
    with torch.no_grad(), record(wrapped) as recording:
        backbone(torch.zeros(1, 3, 64, 64))
    assert len(recording.locations) == 3


def test_what_is_no_module_is_left_alone():
    assert unwrapped(None) is None
