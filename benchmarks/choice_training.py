"""Trains and evaluates the models of benchmarks/choice.py; finished ones are read again."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from choice_controls import InvertedPolicy, OraclePolicy, inverse_frequencies
from choice_metrics import BoundaryScores, average_precision, match_detections, miou
from choice_recipes import RECIPES, without
from mmengine.runner import Runner

from mmdyn.analysis.demo_models import TRAINED, train
from mmdyn.analysis.evaluating import ModelTester
from mmdyn.engine.config import load_config
from mmdyn.models.deciding import deciding_parts
from mmdyn.sparsity import Policy, RandomPolicy, StaticPolicy
from mmdyn.whole_files import write_json


@dataclass(frozen=True)
class Task:
    """A data set and its models.

    Attributes:
        dense, sparse: configs; the sparse one starts from the dense one's checkpoint.
        data: its folder.
        detects: whether it finds instances.
    """

    dense: str
    sparse: str
    data: str
    detects: bool = False

    @property
    def metrics(self) -> tuple[str, str]:
        """Names of the two metrics."""
        return ('mask_ap', 'mask_ap_small') if self.detects else ('miou', 'boundary_f')


TASKS = {
    'nuclei': Task('mmdyn::upernet_swin_nuclei.py', 'mmdyn::upernet_dynswin_nuclei.py', 'nuclei'),
    'nuclei-plain': Task(
        'mmdyn::upernet_swin_nuclei_plain.py', 'mmdyn::upernet_dynswin_nuclei_plain.py', 'nuclei'
    ),
    'camvid': Task(
        'mmdyn::upernet_swin_camvid_half.py', 'mmdyn::upernet_dynswin_camvid_half.py', 'camvid'
    ),
    'nuclei-instances': Task(
        'mmdyn::mask_rcnn_swin_nuclei.py', 'mmdyn::mask_rcnn_dynswin_nuclei.py', 'nuclei', True
    ),
}

# Ways to choose that are not trained, and the models that they are tested with.
TESTED_ONLY = {'inverted': 'learned', 'oracle in test': 'random'}


@dataclass(frozen=True)
class Unit:
    """A model to train and evaluate.

    Attributes:
        task: one of :data:`TASKS`.
        seed: of the training.
        method: ``'dense'``, ``'dense longer'``, or how a sparse model chooses.
        ladder: its keep ratios; empty for a dense model.
        recipe: one of :data:`choice_recipes.RECIPES`.
    """

    task: str
    seed: int
    method: str
    ladder: tuple[float, ...] = ()
    recipe: str = ''

    @property
    def name(self) -> str:
        """Folder in that of the task and seed."""
        parts = [self.method, *(f'{ratio:g}' for ratio in self.ladder), self.recipe]
        return '_'.join(part for part in parts if part).replace(' ', '_')

    def folder(self, work_dir: Path) -> Path:
        """For checkpoint and results."""
        return work_dir / self.task / f'seed_{self.seed}' / self.name


class Laboratory:
    """Where the data and the trained models lie.

    Args:
        work_dir: for checkpoints and results.
        data: folder with the data sets.
    """

    def __init__(self, work_dir: Path, data: Path) -> None:
        self.work_dir, self.data = work_dir, data

    def data_root(self, task: str) -> str:
        """Folder of a task's data set."""
        return str(self.data / TASKS[task].data)

    def check(self, task: str) -> None:
        """Check that a task exists and its data too.

        Raises:
            ValueError: if there is no such task.
            FileNotFoundError: if its data is missing.
        """
        if task not in TASKS:
            raise ValueError(f'unknown task {task!r}; there are {", ".join(TASKS)}')
        root = self.data_root(task)
        if not Path(root).is_dir():
            raise FileNotFoundError(f'{task} needs its data in {root}, which does not exist')

    def record(self, unit: Unit) -> Path:
        """File of a unit's result."""
        return unit.folder(self.work_dir) / 'record.json'

    def finished(self, unit: Unit) -> dict[str, Any] | None:
        """A unit's result without looking at its training; None if there is none."""
        record = self.record(unit)
        return json.loads(record.read_text())['row'] if record.exists() else None

    def result(self, unit: Unit) -> dict[str, Any]:
        """Train and evaluate a unit, unless its folder has the result of the checkpoint in it."""
        record, checkpoint = self.record(unit), self.checkpoint(unit)
        training = Path(checkpoint).with_name(TRAINED).read_text()
        if record.exists() and json.loads(record.read_text())['training'] == training:
            return json.loads(record.read_text())['row']
        metrics = self.evaluate(unit, checkpoint)
        row = dict(
            task=unit.task,
            seed=unit.seed,
            method=unit.method,
            ladder=list(unit.ladder),
            recipe=unit.recipe,
            **metrics,
        )
        write_json(record, dict(training=training, row=row))
        print(json.dumps(row), flush=True)
        return row

    def checkpoint(self, unit: Unit) -> str:
        """Train a unit and what it starts from, unless done."""
        task = TASKS[unit.task]
        if unit.method in TESTED_ONLY:
            trained = TESTED_ONLY[unit.method]
            return self.checkpoint(Unit(unit.task, unit.seed, trained, unit.ladder, unit.recipe))
        settings: dict[str, Any] = dict(seed=unit.seed, data_root=self.data_root(unit.task))
        settings['prepare'] = functools.partial(self._prepare, unit)
        if unit.method != 'dense':
            settings['load_from'] = self.checkpoint(Unit(unit.task, unit.seed, 'dense'))
        config = task.sparse if unit.ladder else task.dense
        options = self.options(unit)
        return train(config, unit.folder(self.work_dir), cfg_options=options, **settings)

    def options(self, unit: Unit) -> dict[str, Any]:
        """Options of the config that make it this unit's."""
        options: dict[str, Any] = {
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
        }
        if unit.method == 'dense longer':
            cfg = load_config(TASKS[unit.task].sparse)
            options |= {
                'optim_wrapper.optimizer.lr': cfg.optim_wrapper.optimizer.lr,
                'param_scheduler': cfg.param_scheduler,
                'train_cfg.max_iters': cfg.train_cfg.max_iters,
                'default_hooks.checkpoint.interval': cfg.default_hooks.checkpoint.interval,
            }
        if not unit.ladder:
            return options
        options['model.backbone.keep_ratios'] = list(unit.ladder)
        config = load_config(TASKS[unit.task].sparse)
        hooks = [hook.to_dict() for hook in config.custom_hooks]
        if unit.method not in ('learned', 'inverted'):
            options |= without(hooks, 'Policy')
            hooks = options['custom_hooks']
        return options | RECIPES[unit.recipe].options(unit.ladder, hooks, config)

    def _prepare(self, unit: Unit, runner: Runner) -> None:
        """Set the policy of a training, and compute in bfloat16 where possible."""
        model = runner.model
        policy = self.policy(unit, model)
        if policy is not None:
            for part in deciding_parts(model):
                part.training_policy = policy
        compute_in_bfloat16(model)
        RECIPES[unit.recipe].prepare(runner, unit.ladder, self.class_weights(unit.task))

    def policy(self, unit: Unit, model: torch.nn.Module) -> Policy | None:
        """How a unit chooses; None = by the scores."""
        if unit.method in ('random', 'fast only'):
            return RandomPolicy(unit.seed)
        if unit.method == 'static':
            return StaticPolicy(unit.seed)
        if unit.method == 'inverted':
            return InvertedPolicy()
        if 'oracle' in unit.method:
            policy = OraclePolicy(self.class_weights(unit.task))
            policy.watch(model)
            return policy
        return None

    @functools.cache  # noqa: B019, lives as long as the process
    def class_weights(self, task: str) -> list[float]:
        """Of the oracle: inverse frequencies in the training set."""
        if TASKS[task].detects:
            return [0.0, 1.0]
        classes = load_config(TASKS[task].dense).model.decode_head.num_classes
        files = sorted(Path(self.data_root(task), 'annotations', 'train').glob('*.png'))
        labels = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]
        return inverse_frequencies(labels, classes)

    def evaluate(self, unit: Unit, checkpoint: str) -> dict[str, float]:
        """Metrics on the validation images; writes what bootstrapping needs to ``images.npz``."""
        task, folder = TASKS[unit.task], unit.folder(self.work_dir)
        folder.mkdir(parents=True, exist_ok=True)
        options = self.options(unit)
        if task.detects:
            options |= self._detector_options(unit, folder)
        tester = ModelTester(
            task.sparse if unit.ladder else task.dense,
            checkpoint,
            folder,
            options,
            data_root=self.data_root(unit.task),
        )
        policy = self.policy(unit, tester.loaded.model)
        if policy is not None:
            for part in deciding_parts(tester.loaded.model):
                part.policy = policy
        boundaries = BoundaryScores()
        if not task.detects:
            tester.runner.test_loop.evaluator.metrics.append(boundaries)
        evaluation = tester.evaluate()
        if task.detects:
            annotations = Path(self.data_root(unit.task), 'val.json')
            matches = match_detections(annotations, folder / 'results.segm.json')
            arrays = {
                f'{metric}/{key}': value
                for metric, found in matches.items()
                for key, value in found.items()
            }
        else:
            areas = np.stack([one.numpy() for one in evaluation.areas], axis=1)
            arrays = dict(areas=areas, boundaries=boundaries.scores)
        np.savez_compressed(folder / 'images.npz', **arrays)
        everything = np.ones((1, images_of(task, arrays)))
        return {name: float(value[0]) for name, value in scores(task, arrays, everything).items()}

    def _detector_options(self, unit: Unit, folder: Path) -> dict[str, Any]:
        options: dict[str, Any] = {
            'test_evaluator.outfile_prefix': str(folder / 'results'),
            'test_evaluator.metric': ['segm'],
        }
        if 'oracle' in unit.method:  # which reads the labels
            pipeline = load_config(TASKS[unit.task].sparse).test_dataloader.dataset.pipeline
            labels = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
            options['test_dataloader.dataset.pipeline'] = [*pipeline[:-1], labels, pipeline[-1]]
        return options


def images_of(task: Task, arrays: Any) -> int:
    """Number of validation images."""
    return len(arrays['mask_ap/instances' if task.detects else 'areas'])


def scores(task: Task, arrays: Any, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of drawn images.

    Args:
        task: whose metrics.
        arrays: of ``images.npz``.
        draws: (draws, images), how often each was drawn.

    Returns:
        (draws,) in per cent for each metric.
    """
    if not task.detects:
        areas = np.tensordot(draws, arrays['areas'], axes=1)
        boundaries = draws @ arrays['boundaries'] / draws.sum(axis=1)
        return dict(miou=miou(areas), boundary_f=boundaries)
    keys = ('image', 'hits', 'ignored', 'instances')
    return {
        name: average_precision({key: arrays[f'{name}/{key}'] for key in keys}, draws)
        for name in task.metrics
    }


def compute_in_bfloat16(model: torch.nn.Module) -> None:
    """Train backbone, neck and decode heads in bfloat16: faster on CPUs that have it.

    mmcv's operators and the losses stay in float32. Casts are not cached: a cached weight would
    never see the optimizer's update.
    """
    methods = [
        (model.backbone, 'forward', False),
        (model.backbone, 'forward_sparse', False),
        (getattr(model, 'neck', None), 'forward', True),
        (getattr(model, 'decode_head', None), 'forward', True),
        (getattr(model, 'auxiliary_head', None), 'forward', True),
    ]
    for part, name, last in methods:
        if hasattr(part, name):
            setattr(part, name, _in_bfloat16(getattr(part, name), last))


def _in_bfloat16(method: Callable, last: bool) -> Callable:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
            out = method(*args, **kwargs)
        if not last:
            return out
        return out.float() if isinstance(out, torch.Tensor) else tuple(one.float() for one in out)

    return call
