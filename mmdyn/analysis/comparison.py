"""Dense against sparse against random selection: one recipe, one table."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmdyn.analysis.complexity import count_macs
from mmdyn.analysis.latency import measure_latency
from mmdyn.engine.prepare import build_runner, prepare_testing, prepare_training
from mmdyn.sparsity import Policy, RandomPolicy, TopKPolicy
from mmdyn.sparsity.ratios import falling_keep_ratios

Advance = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """One line of the comparison.

    Attributes:
        model: ``'dense'`` (the host's backbone) or ``'sparse'``.
        policy: ``'none'``, ``'learned'`` (top-k of the scores) or ``'random'``.
        keep_ratios: one per predictor; empty for the dense model.
    """

    model: str
    policy: str
    keep_ratios: tuple[float, ...]

    @property
    def name(self) -> str:
        """For people's eyes."""
        if self.model == 'dense':
            return 'dense'
        return f'{self.policy} {self.keep_ratios[0]:g}'

    def make_policy(self, seed: int) -> Policy:
        """The policy itself."""
        return RandomPolicy(seed) if self.policy == 'random' else TopKPolicy()


@dataclass(frozen=True)
class Row:
    """What a contender reached; ``miou`` in per cent, ``backbone_gflops`` in 10⁹ multiply-adds.

    ``latency_ms`` is the backbone's median at batch 1 in this run, ``speedup``
    the dense backbone's median over it.
    """

    model: str
    policy: str
    keep_ratios: tuple[float, ...]
    seed: int
    miou: float
    backbone_gflops: float
    latency_ms: float
    speedup: float


def contenders(
    learned: Sequence[float], random: Sequence[float], predictors: int
) -> list[Contender]:
    """The dense model, the learned choice and the random one at the given first keep ratios."""
    return [
        Contender('dense', 'none', ()),
        *(Contender('sparse', 'learned', falling_keep_ratios(r, predictors)) for r in learned),
        *(Contender('sparse', 'random', falling_keep_ratios(r, predictors)) for r in random),
    ]


class _Told(Hook):
    """Tells a progress display of every iteration and every evaluated image."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        self.advance()

    def after_test_iter(self, *_: Any, **__: Any) -> None:
        self.advance()


def quietly() -> contextlib.redirect_stdout:
    """Keep what mmengine prints off the screen, for a readable progress display.

    Its console handler keeps the stdout it was made with, so a Runner built so
    stays quiet; its log files hold everything.
    """
    return contextlib.redirect_stdout(io.StringIO())


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
        with quietly():
            runner = build_runner(cfg, notes)
            runner.register_hook(_Told(advance))
            runner.train()
        stamp.write_text(recipe)
    return str(last)


def _recipe(config: str, load_from: str | None) -> str:
    """A hash of what decides a training: config, seed, and the weights it starts from."""
    digest = hashlib.sha256(config.encode())
    if load_from is not None:
        digest.update(Path(load_from).read_bytes())
    return digest.hexdigest()


class Evaluator:
    """A trained model on its test set, at any policy and keep ratios.

    Args:
        config: a config file, or a packaged one.
        checkpoint: its weights.
        work_dir: where logs go.
        cfg_options: overrides, keys with dots.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        work_dir: Path,
        cfg_options: dict[str, Any] | None = None,
    ) -> None:
        options = {**(cfg_options or {}), 'visualizer.name': str(work_dir)}
        cfg, notes = prepare_testing(
            config, checkpoint, work_dir=str(work_dir), cfg_options=options
        )
        with quietly():
            self.runner: Runner = build_runner(cfg, notes)
            self.runner.load_or_resume()
        self.model = self.runner.model.eval()
        self.backbone = self.model.backbone
        self._advance: Advance = lambda: None
        self.runner.register_hook(_Told(lambda: self._advance()))

    def set(self, contender: Contender, seed: int) -> None:
        """Make the model behave as the contender says."""
        if contender.model == 'sparse':
            self.backbone.set_keep_ratios(contender.keep_ratios)
            self.backbone.policy = contender.make_policy(seed)

    def metrics(self, advance: Advance = lambda: None) -> dict[str, float]:
        """Evaluate on the whole test set."""
        self._advance = advance
        with quietly():
            return self.runner.test()

    def images(self, count: int) -> list[tuple[Tensor, Any]]:
        """The first ``count`` test images: (1, 3, h, w) inputs and their samples."""
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


def compare(
    dense: Evaluator,
    sparse: Evaluator,
    lines: Sequence[Contender],
    *,
    seed: int,
    rounds: int = 30,
    advance: Advance = lambda: None,
) -> list[Row]:
    """Evaluate, count and time every contender.

    Args:
        dense, sparse: the twins.
        lines: who takes part; the first is the dense model, the reference.
        seed: of the random policies; noted in the rows.
        rounds: timed calls of each, on different images.
        advance: called after every evaluated image and every timed call.
    """
    twins = {'dense': dense, 'sparse': sparse}
    inputs = [image for image, _ in sparse.images(rounds)]
    miou, macs = {}, {}
    for line in lines:
        twin = twins[line.model]
        twin.set(line, seed)
        miou[line] = twin.metrics(advance)['mIoU']
        # Top-k and random selection keep the same number in every image of a size.
        macs[line] = count_macs(lambda twin=twin: twin.backbone(inputs[0]))

    def runs(line: Contender) -> Callable[[int], Any]:
        def run(index: int) -> None:
            twins[line.model].set(line, seed)
            twins[line.model].backbone(inputs[index % len(inputs)])

        return run

    times = measure_latency({line: runs(line) for line in lines}, rounds, on_call=advance)
    reference = times[lines[0]].median
    return [
        Row(
            model=line.model,
            policy=line.policy,
            keep_ratios=line.keep_ratios,
            seed=seed,
            miou=round(float(miou[line]), 2),
            backbone_gflops=round(macs[line] / 1e9, 4),
            latency_ms=round(times[line].median, 3),
            speedup=round(reference / times[line].median, 3),
        )
        for line in lines
    ]


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a JSON list; replaced in one step, never half-written."""
    beside = path.with_suffix('.tmp')
    beside.write_text(json.dumps([asdict(row) for row in rows], indent=2) + '\n')
    os.replace(beside, path)


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


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADINGS, ('---',) * len(HEADINGS), *map(cells, rows)]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def predict(evaluator: Evaluator, inputs: Tensor, sample: Any) -> tuple[Tensor, Any]:
    """Labels and decisions of one image.

    Args:
        evaluator: of a sparse segmentor.
        inputs: (1, 3, h, w), preprocessed.
        sample: its data sample.

    Returns:
        (h, w) int64 labels, and the decisions behind them.
    """
    with torch.inference_mode():
        extracted, out = evaluator.model.extract_sparse(inputs, [sample.metainfo])
        logits = evaluator.model.decode_head.predict(
            extracted.feats, [sample.metainfo], evaluator.model.test_cfg
        )
    return logits[0].argmax(dim=0).cpu(), out.decisions
