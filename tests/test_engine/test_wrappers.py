"""Models in whatever wraps them, as hooks and tools meet them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')

from mmengine.model import BaseTTAModel, ExponentialMovingAverage

from mmdyn.engine.hooks import KeepRatioHook, TrainingPolicyHook
from mmdyn.engine.hooks.schedules import deciding_parts, sparse_backbone
from mmdyn.engine.recording import record
from mmdyn.engine.wrappers import unwrapped
from mmdyn.models import DynamicSwin


class Model(nn.Module):
    """A host's, as far as hooks look at it."""

    def __init__(self):
        super().__init__()
        self.backbone = DynamicSwin(
            embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2), window_size=4
        )

    def forward(self, x):
        return self.backbone(x)

    def test_step(self, data):
        return self(data)


class Merging(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


class Sharded(nn.Module):
    """As FSDP and DeepSpeed hold a model: under another name, and ``module`` is a property."""

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
def test_hooks_find_the_backbone_inside(wrap):
    wrapped = wrap(Model()).eval()
    model = unwrapped(wrapped)
    assert type(model) is Model
    runner = SimpleNamespace(model=wrapped, max_iters=9, iter=0)
    backbone = model.backbone
    hook = KeepRatioHook(end=4)
    assert sparse_backbone(runner, hook) is backbone
    assert deciding_parts(runner, hook) == [backbone]
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert backbone.keep_ratios == (1, 1, 1)
    TrainingPolicyHook([dict(begin=0, policy=dict(type='mmdyn.TopKPolicy'))]).before_train(runner)
    with torch.no_grad(), record(wrapped) as recording:
        model(torch.zeros(1, 3, 64, 64))
    assert len(recording.locations) == 3


def test_a_compiled_backbone_is_found_too():
    model = Model()
    backbone, model.backbone = model.backbone, compiled(model.backbone)
    assert deciding_parts(SimpleNamespace(model=model), None) == [backbone]
    assert unwrapped(None) is None  # what is no module is left alone
