"""A tiny training with mmengine only that uses every kind of random number, in milliseconds."""

import random
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn


@DATASETS.register_module()
class ToyDataset(BaseDataset):
    """Eight points, augmented with random numbers of Python, numpy and torch."""

    def load_data_list(self):
        return [dict(value=float(index)) for index in range(8)]

    def prepare_data(self, idx):
        noise = random.gauss(0, 1) + np.random.randn() + torch.randn(()).item()
        return dict(inputs=torch.full((4,), self.get_data_info(idx)['value'] + noise))


@MODELS.register_module()
class ToyModel(BaseModel):
    """A layer with dropout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs, mode='loss'):
        out = nn.functional.dropout(self.layer(torch.stack(inputs)), 0.5, self.training)
        return dict(loss=out.square().mean()) if mode == 'loss' else [dict(out=row) for row in out]


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Also draws random numbers; the score decreases, so the first validation stays the best."""

    calls = 0

    def process(self, data_batch, data_samples):
        self.results += [np.random.rand() for _ in data_samples]

    def compute_metrics(self, results):
        type(self).calls += 1
        return dict(acc=-float(self.calls))


class QuickRunner(Runner):
    """mmengine's, without collecting information on the environment, which takes a second."""

    def _log_env(self, env_cfg):
        pass


@HOOKS.register_module()
class LossRecorder(Hook):
    """Stores every iteration's loss and iteration number."""

    def __init__(self):
        self.losses = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter] = outputs['loss'].item()


def toy_config(work_dir: Path, *, by_epoch: bool, length: int, sampler: str, **changes) -> Config:
    """A config for the training; `length` in iterations or epochs (of four iterations)."""
    loader = dict(
        dataset=dict(type='ToyDataset', serialize_data=False),
        sampler=dict(type=sampler, shuffle=True),
        batch_size=2,
        num_workers=0,
    )
    train_cfg = (
        dict(by_epoch=True, max_epochs=length, val_interval=1)
        if by_epoch
        else dict(by_epoch=False, max_iters=length, val_interval=2)
    )
    checkpoint = dict(
        type='CheckpointHook', interval=1 if by_epoch else 2, by_epoch=by_epoch, save_best='acc'
    )
    settings = dict(
        model=dict(type='ToyModel'),
        work_dir=str(work_dir),
        train_dataloader=loader,
        val_dataloader={**loader, 'sampler': dict(type='DefaultSampler', shuffle=False)},
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_evaluator=dict(type='ToyMetric'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type='mmdyn.RngStateHook'), dict(type='LossRecorder')],
        log_level='ERROR',
    )
    return Config({**settings, **changes})


def train(cfg: Config, name: str) -> tuple[Runner, dict[int, float]]:
    """Train; returns the runner and the losses by iteration."""
    cfg.experiment_name = name  # else two runners in the same second share logs
    runner = QuickRunner.from_cfg(cfg)
    runner.train()
    recorder = next(hook for hook in runner.hooks if isinstance(hook, LossRecorder))
    return runner, recorder.losses
