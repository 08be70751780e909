"""Dense against sparse against random selection: one table."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmdyn.analysis.complexity import count_macs
from mmdyn.analysis.evaluating import Advance, ModelTester, Told
from mmdyn.analysis.latency import measure_latency, speedup
from mmdyn.analysis.progress import quietly
from mmdyn.engine.prepare import build_runner, prepare_training
from mmdyn.sparsity import Policy, RandomPolicy, StaticPolicy, TopKPolicy
from mmdyn.sparsity.ratios import falling_keep_ratios
from mmdyn.whole_files import write_text


@dataclass(frozen=True)
class Contender:
    """One line of the comparison.

    Attributes:
        model: name of the model, for example ``'dense'`` or ``'sparse'``.
        policy: ``'none'`` (a dense model), ``'learned'`` (top-k of the scores), ``'random'``
            or ``'static'`` (the same locations in every image).
        keep_ratios: one per predictor; empty for a dense model.
    """

    model: str
    policy: str = 'none'
    keep_ratios: tuple[float, ...] = ()

    def make_policy(self, seed: int) -> Policy:
        """The policy itself."""
        controls = dict(random=RandomPolicy, static=StaticPolicy)
        return controls[self.policy](seed) if self.policy in controls else TopKPolicy()


@dataclass(frozen=True)
class Row:
    """What a contender reached; ``miou`` in per cent, ``backbone_gflops`` in 10⁹ multiply-adds.

    ``latency_ms`` is the backbone's median at batch 1 in this run, ``speedup`` the
    median over rounds of the first contender's time over it. ``areas`` are the (images, classes)
    intersections and unions that the mIoU is made of; they are not written.
    """

    model: str
    policy: str
    keep_ratios: tuple[float, ...]
    seed: int
    miou: float
    backbone_gflops: float
    latency_ms: float
    speedup: float
    areas: tuple[Tensor, Tensor] = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """What is written of it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != 'areas'}


def sparse_contenders(
    model: str,
    predictors: int,
    *,
    learned: Sequence[float],
    random: Sequence[float],
    ladder: Literal['linear', 'geometric'] = 'linear',
) -> list[Contender]:
    """The learned choice and the random one of a sparse model, at the given first keep ratios.

    Args:
        model: its name.
        predictors: how many it has.
        learned, random: first keep ratios; later ones fall from each.
        ladder: how; see :func:`mmdyn.sparsity.ratios.falling_keep_ratios`.
    """
    return [
        Contender(model, policy, falling_keep_ratios(ratio, predictors, ladder))
        for policy, ratios in (('learned', learned), ('random', random))
        for ratio in ratios
    ]


def train(
    config: str,
    work_dir: Path,
    *,
    seed: int,
    load_from: str | None = None,
    advance: Advance = lambda: None,
    cfg_options: dict[str, Any] | None = None,
) -> str:
    """Train a config, unless just that was done in this folder before.

    Args:
        config: a config file, or a packaged one as ``mmdyn::NAME.py``.
        work_dir: where logs and checkpoints go.
        seed: of everything random.
        load_from: checkpoint to start from.
        advance: called after every iteration.
        cfg_options: overrides, keys with dots.

    Returns:
        The last checkpoint.
    """
    options = {
        **(cfg_options or {}),
        'randomness.seed': seed,
        # Runners of one process share a visualizer of the same name, and its folder.
        'visualizer.name': str(work_dir),
    }
    if load_from is not None:
        options['load_from'] = load_from
    cfg, notes = prepare_training(config, work_dir=str(work_dir), cfg_options=options)
    last = work_dir / f'iter_{cfg.train_cfg.max_iters}.pth'
    # Written after the training: says what it was, and that it came to its end.
    stamp = work_dir / 'trained.txt'
    recipe = _recipe(cfg.pretty_text, load_from)
    if not stamp.exists() or stamp.read_text() != recipe:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None  # evaluated afterwards
        stamp.unlink(missing_ok=True)  # of another training, whose checkpoint this one replaces
        with quietly():
            runner = build_runner(cfg, notes)
            runner.register_hook(Told(advance))
            runner.train()
        write_text(stamp, recipe)
    return str(last)


def _recipe(config: str, load_from: str | None) -> str:
    """A hash of what decides a training: config, seed, and the weights it starts from."""
    digest = hashlib.sha256(config.encode())
    if load_from is not None:
        digest.update(Path(load_from).read_bytes())
    return digest.hexdigest()


class _Areas(Hook):
    """Keeps each image's areas, which mmseg's metric forgets once it has summed them."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self.per_image: list[tuple[Tensor, ...]] = []

    def after_test_iter(self, *_: Any, **__: Any) -> None:
        self.per_image = list(self.metric.results)


class Evaluator(ModelTester):
    """A trained segmentor on its test set, at any policy and keep ratios.

    Takes the arguments of :class:`mmdyn.analysis.evaluating.ModelTester`.

    Raises:
        ValueError: if the config's ``test_evaluator`` doesn't measure a mIoU.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model = self.loaded.model
        self.backbone = self.loaded.backbone
        self._areas = _Areas(_miou_metric(self.runner))
        self.runner.register_hook(self._areas)

    @property
    def predictors(self) -> int:
        """How many predictors the backbone has; 0 for a dense one."""
        return len(getattr(self.backbone, 'predictors', ()))

    @property
    def keep_ratio_ladder(self) -> Literal['linear', 'geometric']:
        """How the keep ratios of this backbone fall from the first one."""
        return getattr(self.backbone, 'keep_ratio_ladder', 'linear')

    def set(self, contender: Contender, seed: int) -> None:
        """Make the model behave as the contender says."""
        if contender.policy != 'none':
            self.backbone.set_keep_ratios(contender.keep_ratios)
            self.backbone.policy = contender.make_policy(seed)

    def evaluate_areas(
        self, advance: Advance = lambda: None
    ) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        """Evaluate on the whole test set.

        Returns:
            The metrics, and each image's (images, classes) intersections and unions in
            pixels.
        """
        metrics = self.evaluate(advance)
        intersections, unions, *_ = zip(*self._areas.per_image, strict=True)
        return metrics, (torch.stack(intersections), torch.stack(unions))

    def images(self, count: int) -> list[tuple[Tensor, Any]]:
        """The first ``count`` test images: (1, C, h, w) inputs and their samples."""
        found = []
        for data in self.runner.test_dataloader:
            batch = self.model.data_preprocessor(data, training=False)
            found += [
                (batch['inputs'][i : i + 1], sample)
                for i, sample in enumerate(batch['data_samples'])
            ]
            if len(found) >= count:
                break
        return found[:count]


def _miou_metric(runner: Runner) -> Any:
    """The test evaluator's metric that measures a mIoU."""
    metrics = runner.test_loop.evaluator.metrics
    for metric in metrics:
        if hasattr(metric, 'intersect_and_union') and 'mIoU' in metric.metrics:
            return metric
    names = ', '.join(type(metric).__name__ for metric in metrics)
    raise ValueError(
        f"test_evaluator has {names}; a comparison needs mmseg's IoUMetric with "
        "iou_metrics=['mIoU']"
    )


def check_same_test_set(models: Mapping[str, Evaluator]) -> None:
    """Make sure that models are tested on the same images and classes.

    Raises:
        ValueError: if one is not; the message names it and the first one.
    """
    sets = {name: model.runner.test_dataloader.dataset for name, model in models.items()}
    first, *others = sets
    for name in others:
        for what, read in (('classes', _classes), ('images', _images)):
            if read(sets[name]) != read(sets[first]):
                raise ValueError(
                    f'{name!r} is tested on other {what} than {first!r} ({len(sets[name])} and '
                    f'{len(sets[first])} images); give configs of one test set, or set '
                    'test_dataloader in --cfg-options'
                )


def _classes(dataset: Any) -> tuple[str, ...]:
    return tuple(dataset.metainfo['classes'])


def _images(dataset: Any) -> list[str]:
    return [os.path.realpath(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]


def compare(
    models: Mapping[str, Evaluator],
    lines: Sequence[Contender],
    *,
    seed: int,
    rounds: int = 30,
    advance: Advance = lambda: None,
) -> list[Row]:
    """Evaluate, count and time every contender.

    Args:
        models: by the names that ``lines`` use; all on the same test set.
        lines: who takes part; the first is the reference of the speed-up.
        seed: of the random policies; noted in the rows.
        rounds: timed calls of each, on different images.
        advance: called after every evaluated image and every timed call.
    """
    inputs = [image for image, _ in models[lines[0].model].images(rounds)]
    miou, areas, macs = {}, {}, {}
    for line in lines:
        model = models[line.model]
        model.set(line, seed)
        metrics, areas[line] = model.evaluate_areas(advance)
        miou[line] = metrics['mIoU']
        # Top-k and random selection keep the same number in every image of a size.
        macs[line] = count_macs(lambda model=model: model.backbone(inputs[0]))

    def runs(line: Contender) -> Callable[[Tensor], Any]:
        def run(image: Tensor) -> None:
            models[line.model].set(line, seed)
            models[line.model].backbone(image)

        return run

    contenders = {line: runs(line) for line in lines}
    times = measure_latency(contenders, inputs, rounds=rounds, on_call=advance)
    reference = times[lines[0]]
    return [
        Row(
            model=line.model,
            policy=line.policy,
            keep_ratios=line.keep_ratios,
            seed=seed,
            miou=round(float(miou[line]), 2),
            backbone_gflops=round(macs[line] / 1e9, 4),
            latency_ms=round(times[line].median, 3),
            speedup=round(speedup(times[line], reference).median, 3),
            areas=areas[line],
        )
        for line in lines
    ]


def write_json(content: Any, path: Path) -> None:
    """Write rows, or whatever JSON can hold; replaced in one step, never half-written."""
    write_text(path, json.dumps(content, indent=2) + '\n')


HEADINGS = ('model', 'keep ratios', 'mIoU (%)', 'GMACs', 'ms', 'speed-up')


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, under :data:`HEADINGS`."""
    return (
        row.model if row.policy == 'none' else f'{row.model}, {row.policy}',
        ', '.join(f'{ratio:g}' for ratio in row.keep_ratios) or '-',
        f'{row.miou:.2f}',
        f'{row.backbone_gflops:.3f}',
        f'{row.latency_ms:.1f}',
        f'{row.speedup:.2f}x',
    )


def to_markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ('---',) * len(headings), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def predict(evaluator: Evaluator, inputs: Tensor, sample: Any) -> tuple[Tensor, Any]:
    """Labels and decisions of one image.

    Args:
        evaluator: of a sparse segmentor.
        inputs: (1, C, h, w), preprocessed.
        sample: its data sample.

    Returns:
        (h, w) int64 labels, and the decisions behind them.
    """
    with torch.inference_mode():
        extracted, out = evaluator.model.extract_sparse(inputs, [sample.metainfo])
        logits = evaluator.model.decode_head.predict(
            extracted.feats, [sample.metainfo], evaluator.model.test_cfg
        )
        (result,) = evaluator.model.postprocess_result(logits, [sample])
    return result.pred_sem_seg.data[0].long().cpu(), out.decisions
