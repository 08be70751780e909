"""One picture through a dense and a sparse model: predictions, multiply-adds, times."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mmdyn.analysis.counting import MacCount, count_executed
from mmdyn.analysis.images import Batch
from mmdyn.analysis.lines import DENSE, LEARNED, PARTS, Line
from mmdyn.analysis.loading import LoadedModel
from mmdyn.analysis.measuring import Latency, Spread, measure_latency, speedup, threads
from mmdyn.apis import DynamicInferencer, Inference, Picture
from mmdyn.models.deciding import tile_part
from mmdyn.sparsity import TopKPolicy

END_TO_END = PARTS[1]
ROUNDS = 5
"""Measured calls of each model, at least."""


@dataclass(frozen=True, eq=False)
class Side:
    """What one of the two models did with a picture.

    Attributes:
        model: which one.
        inference: what it predicted and chose.
        macs: the multiply-adds it executed for that.
        latency: of the whole model, normalised picture to prediction.
    """

    model: LoadedModel
    inference: Inference
    macs: MacCount
    latency: Latency


@dataclass(frozen=True, eq=False)
class Compared:
    """A picture through both models.

    Attributes:
        dense, sparse: what each did.
        speedup: how many times as fast the sparse one was, over the rounds.
        threads: of the CPU, that torch computed on.
    """

    dense: Side
    sparse: Side
    speedup: Spread
    threads: int


class Comparer:
    """Compares a sparse model with a dense one, one picture at a time whoever asks.

    Every call sets the models' ratios and policies anew.

    Args:
        sparse: with something to choose: a sparse backbone, or a head or neck that goes by
            tiles.
        dense: another model of the same task and classes; None = the sparse one with every
            ratio at its highest.
        cpu_threads: that torch computes on; None = as it is.
        seconds: of measured time that a picture is given, if a few rounds take less.

    Attributes:
        ratios: those that the sparse model has to choose, ``keep_ratio`` (the first
            predictor's) and ``tile_ratio``, with their values in its config.

    Raises:
        ValueError: if ``sparse`` has nothing to choose, or the two don't belong together.
    """

    def __init__(
        self,
        sparse: DynamicInferencer,
        dense: DynamicInferencer | None = None,
        *,
        cpu_threads: int | None = None,
        seconds: float = 1.5,
    ) -> None:
        self.sparse = sparse
        self.dense = sparse if dense is None else dense
        loaded, tiles = sparse.loaded, tile_part(sparse.model)
        self.ratios: dict[str, float] = {}
        if loaded.is_sparse:
            self.ratios['keep_ratio'] = loaded.backbone.keep_ratios[0]
        # Built with 0 or 1, a head lacks what another ratio needs.
        if tiles is not None and 0 < tiles.tile_ratio < 1:
            self.ratios['tile_ratio'] = tiles.tile_ratio
        self._threads, self._seconds = cpu_threads, seconds
        self._lock = threading.Lock()
        if cpu_threads is not None and cpu_threads < 1:
            raise ValueError(f'threads must be 1 or more, got {cpu_threads}')
        if not self.ratios:
            raise ValueError(
                f'{loaded.name} has nothing to choose: give a config with a sparse backbone, or '
                'with a head or neck that goes by tiles'
            )
        if self.dense.classes != sparse.classes:
            raise ValueError(
                f'{self.dense.loaded.name} and {loaded.name} predict other classes '
                f'({len(self.dense.classes)} and {len(sparse.classes)}): give models of one task'
            )

    @property
    def has_twin(self) -> bool:
        """Whether the dense model is another one than the sparse."""
        return self.dense is not self.sparse

    def __call__(self, picture: Picture, **ratios: float) -> Compared:
        """Predict and measure; waits while another call is at it.

        Args:
            picture: of any size.
            **ratios: of the sparse model, in place of those in ``self.ratios``.

        Raises:
            TypeError, ValueError: if a ratio does not fit the model.
        """
        models = {DENSE: self.dense, LEARNED: self.sparse}
        with self._lock, threads(self._threads):
            lines = {
                DENSE: _line(self.dense, DENSE, 1.0, _highest(self.dense)),
                LEARNED: _line(self.sparse, LEARNED, **{**self.ratios, **ratios}),
            }
            found = {kind: _predict(models[kind], picture, lines[kind]) for kind in models}
            batches = {kind: _batch(models[kind], picture) for kind in models}
            times = measure_latency(
                {kind: _run(line) for kind, line in lines.items()},
                [batches],
                rounds=ROUNDS,
                seconds=self._seconds,
                warmup=1,
            )
            sides = {kind: Side(models[kind].loaded, *found[kind], times[kind]) for kind in models}
            gained = speedup(times[LEARNED], times[DENSE])
            return Compared(sides[DENSE], sides[LEARNED], gained, torch.get_num_threads())


def _highest(infer: DynamicInferencer) -> float | None:
    tiles = tile_part(infer.model)
    return None if tiles is None else tiles.highest_ratio


def _line(
    infer: DynamicInferencer,
    kind: str,
    keep_ratio: float = 1.0,
    tile_ratio: float | None = None,
) -> Line:
    """A model at some ratios; those that it has no use for are left out.

    Always top-k: under another policy a ratio need not decide how much is kept.
    """
    loaded, tiles, policy = infer.loaded, tile_part(infer.model), TopKPolicy()
    ladder = ()
    if loaded.is_sparse:
        own = tuple(loaded.backbone.keep_ratios)
        # The config's ratios need not fall as others do.
        ladder = own if keep_ratio == own[0] else loaded.ladder(keep_ratio)
    if tiles is not None and tile_ratio is None:
        tile_ratio = tiles.tile_ratio
    return Line(
        kind,
        infer.model,
        keep_ratios=ladder,
        policy=policy if loaded.is_sparse else None,
        tile_ratio=tile_ratio if tiles is not None else None,
        tile_policy=policy if tiles is not None else None,
    )


def _predict(infer: DynamicInferencer, picture: Picture, line: Line) -> tuple[Inference, MacCount]:
    """What a model predicts, and what it executes for that."""
    results = infer(
        picture.image,
        keep_ratios=line.keep_ratios or None,
        tile_ratio=line.tile_ratio,
        policy=line.policy or line.tile_policy,
    )
    count, inference = count_executed(lambda: next(results), infer.model)
    return inference, count


def _batch(infer: DynamicInferencer, picture: Picture) -> Batch:
    """A picture as the model gets it, normalised."""
    packed = infer.reader.pack(picture)
    data = infer.model.data_preprocessor(
        {key: [packed[key]] for key in ('inputs', 'data_samples')}, False
    )
    metainfos = tuple(sample.metainfo for sample in data['data_samples'])
    return Batch(data['inputs'], metainfos, infer.loaded.cfg.default_scope)


def _run(line: Line) -> Callable[[dict[str, Batch]], Any]:
    run = line.runner(END_TO_END)
    return lambda batches: run(batches[line.kind])
