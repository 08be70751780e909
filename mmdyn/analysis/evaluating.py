"""Repeated evaluation of a trained model on its test set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from mmdyn.analysis.images import HostBatch, host_batch
from mmdyn.analysis.intervals import bootstrap_miou
from mmdyn.analysis.progress import quietly
from mmdyn.engine.hooks.check_weights import CheckWeightsHook
from mmdyn.engine.loading import LoadedModel, check_device
from mmdyn.engine.prepare import build_runner, prepare_testing
from mmdyn.guard import checkpoints_as_data

Advance = Callable[[], Any]

METRICS = ('mIoU', 'coco/segm_mAP', 'coco/bbox_mAP', 'accuracy/top1')
"""Default metrics, in order of preference."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of a model on its test set.

    Attributes:
        metrics: by name.
        areas: intersections and unions per image, (images, classes) in pixels, of which mIoU is
            computed; None = the test evaluator does not measure mIoU.
    """

    metrics: Mapping[str, float]
    areas: tuple[Tensor, Tensor] | None = None
    _known: dict[Any, tuple[float, float]] = field(default_factory=dict)

    def interval(self, reference: Evaluation | None = None) -> tuple[float, float] | None:
        """95 % interval of the mIoU, or of its difference to a reference; None = unknown."""
        pairs = [one.areas for one in (self, reference) if one is not None]
        if any(areas is None or not areas[1].sum() for areas in pairs):
            return None
        if reference not in self._known:
            self._known[reference] = bootstrap_miou(*pairs)
        return self._known[reference]


class _Watch(Hook):
    """Reports evaluated batches; stores areas per image, which mmseg's metric only sums."""

    def __init__(self, metrics: Iterable[Any]) -> None:
        found = (metric for metric in metrics if hasattr(metric, 'intersect_and_union'))
        self.metric = next((metric for metric in found if 'mIoU' in metric.metrics), None)
        self.per_image: list[tuple[Tensor, ...]] = []
        self.advance: Advance = lambda: None

    def after_test_iter(self, *_: Any, **__: Any) -> None:
        """Report a batch."""
        self.advance()
        if self.metric is not None:
            self.per_image = list(self.metric.results)


class ModelTester:
    """A trained model and its test set, or a subset.

    Args:
        config, checkpoint, cfg_options, data_root, trust_checkpoint: see ``tools/test.py``.
        work_dir: folder for logs.
        images: number of test images to evaluate on, evenly spread; None = all.
        device: of the model; None = a GPU if there is one.

    Attributes:
        loaded: the model, in evaluation mode.
        runner: mmengine's, with the test set.

    Raises:
        FileNotFoundError, KeyError, ValueError: see
            :func:`mmdyn.engine.prepare.prepare_testing`; or the data set does not support subsets.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        work_dir: Path,
        cfg_options: dict[str, Any] | None = None,
        *,
        data_root: str | None = None,
        images: int | None = None,
        device: str | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        cfg, notes = prepare_testing(
            config,
            checkpoint,
            work_dir=str(work_dir),
            data_root=data_root,
            cfg_options=cfg_options,
            trust_checkpoint=trust_checkpoint,
        )
        if cfg.get('visualizer'):
            # Runners in one process share a visualizer of the same name, including its folder.
            cfg.visualizer.name = str(work_dir)
        if images is not None:
            take_part(cfg, images)
        with quietly():
            self.runner: Runner = build_runner(cfg, notes)
            self.runner.register_hook(CheckWeightsHook(self.runner, whole=True, any_ratio=True))
            self.runner.load_or_resume()
        if device is not None:
            check_device(device)
            self.runner.model.to(device)
        name, weights = Path(config.rpartition('::')[2]).stem, f'weights of {Path(checkpoint).name}'
        self.loaded = LoadedModel(name, cfg, self.runner.model.eval(), weights, tuple(notes))
        self._watch = _Watch(self.runner.test_loop.evaluator.metrics)
        self.runner.register_hook(self._watch)
        # Otherwise mmdet's COCO metric would count excluded images as misses.
        for metric in self.runner.test_loop.evaluator.metrics if images is not None else ():
            if hasattr(metric, 'img_ids'):
                every = range(len(self.dataset))
                metric.img_ids = [self.dataset.get_data_info(i)['img_id'] for i in every]

    @property
    def dataset(self) -> Any:
        """The test set."""
        return self.runner.test_dataloader.dataset

    @property
    def steps(self) -> int:
        """Number of calls of ``advance`` by :meth:`evaluate`."""
        return len(self.runner.test_dataloader)

    def evaluate(self, advance: Advance = lambda: None) -> Evaluation:
        """Evaluate the model with its current settings; calls ``advance`` after every batch."""
        self._watch.advance = advance
        with quietly():
            metrics = self.runner.test()
        if not self._watch.per_image:
            return Evaluation(metrics)
        intersections, unions, *_ = zip(*self._watch.per_image, strict=True)
        return Evaluation(metrics, (torch.stack(intersections), torch.stack(unions)))

    def batch(self, index: int) -> HostBatch:
        """A preprocessed test image."""
        item = {name: [value] for name, value in self.dataset[index].items()}
        return host_batch(self.loaded, item)

    def batches(self, count: int) -> list[HostBatch]:
        """``count`` test images in batches of one, evenly spread; all if there are fewer."""
        return [self.batch(index) for index in evenly(len(self.dataset), count)]


def evenly(size: int, count: int) -> list[int]:
    """At most ``count`` of ``size`` indices, evenly spread, starting from 0."""
    count = min(size, count)
    return [index * size // count for index in range(count)]


def take_part(cfg: Config, count: int) -> None:
    """Restrict the test set of a config to ``count`` images, evenly spread.

    Raises:
        ValueError: if ``count`` is below 1, or the test set wraps other ones.
    """
    if count < 1:
        raise ValueError(f'a subset of the test set needs at least 1 image, got {count}')
    dataset = cfg.test_dataloader.dataset
    if 'dataset' in dataset or 'datasets' in dataset:
        raise ValueError(
            f'the test set is a {dataset.type} of other data sets and has no subsets: evaluate on '
            'all of it'
        )
    init_default_scope(cfg.default_scope)
    given = dataset.pop('indices', None)
    with quietly(), checkpoints_as_data(cfg.get('trust_checkpoint')):
        size = len(DATASETS.build(dataset))
    every = list(range(size))
    if given is not None:
        every = every[:given] if isinstance(given, int) else [every[index] for index in given]
    dataset.indices = [every[index] for index in evenly(len(every), count)]


def metric_name(measured: Iterable[str], name: str | None = None) -> str:
    """Select the metric: ``name``, or the first of :data:`METRICS`.

    Raises:
        ValueError: if it was not ``measured``.
    """
    found = set(measured)
    wanted = METRICS if name is None else (name,)
    if not found.intersection(wanted):
        raise ValueError(
            f'the test evaluator does not measure {" or ".join(map(repr, wanted))}; it measures '
            f'{", ".join(sorted(found))}'
        )
    return next(known for known in wanted if known in found)


def check_metric(tester: ModelTester, name: str | None) -> None:
    """Check that a metric is measured, by evaluating one batch.

    Raises:
        ValueError: if the test set is empty, or the metric is not measured.
    """
    if not len(tester.dataset):
        raise ValueError('the test set is empty')
    evaluator = tester.runner.test_loop.evaluator
    with quietly(), torch.no_grad():
        data = next(iter(tester.runner.test_dataloader))
        outputs = tester.runner.model.test_step(data)
        evaluator.process(data_samples=outputs, data_batch=data)
        metrics = evaluator.evaluate(len(outputs))
    # Without detections mmdet reports no metrics, and only kept fractions are known.
    if any(not key.startswith(('keep_ratio', 'tile_ratio')) for key in metrics):
        metric_name(metrics, name)


def check_same_test_set(models: Mapping[str, ModelTester]) -> None:
    """Check that models are tested on the same images and classes.

    Raises:
        ValueError: if one is not; the message names it and the first one.
    """
    sets = {name: model.dataset for name, model in models.items()}
    first, *others = sets
    for name, (what, read) in product(others, (('classes', _classes), ('images', _images))):
        if read(sets[name]) != read(sets[first]):
            raise ValueError(
                f'{name!r} is tested on other {what} than {first!r} ({len(sets[name])} and '
                f'{len(sets[first])} images); give configs with the same test set, or set '
                'test_dataloader in --cfg-options'
            )


def _classes(dataset: Any) -> tuple[str, ...]:
    return tuple(dataset.metainfo['classes'])


def _images(dataset: Any) -> list[str]:
    return [os.path.realpath(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
