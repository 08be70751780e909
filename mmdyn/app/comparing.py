"""One picture through a dense and a sparse model: predictions, multiply-adds, times."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import torch

from mmdyn.analysis.counting import MacCount, count_executed
from mmdyn.analysis.images import HostBatch, host_batch
from mmdyn.analysis.lines import DENSE, LEARNED, PARTS, Line, as_dense, as_set, chosen_by
from mmdyn.analysis.measuring import Latency, Spread, measure_latency, speedup, threads
from mmdyn.apis import DynamicInferencer, Inference, Picture
from mmdyn.engine.loading import LoadedModel
from mmdyn.sparsity import TopKPolicy

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

    Every call sets the models' ratios anew. The choice is always top-k: under another policy a
    ratio need not decide how much is kept.

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
        self.sparse, self.dense = sparse, dense or sparse
        self._threads, self._seconds = cpu_threads, seconds
        self._lock = threading.Lock()
        self._own = chosen_by(as_set(sparse.model), TopKPolicy())
        self.ratios: dict[str, float] = {}
        if self._own.keep_ratios:
            self.ratios['keep_ratio'] = self._own.keep_ratios[0]
        # Built with 0 or 1, a head lacks what another ratio needs.
        if self._own.tile_ratio is not None and 0 < self._own.tile_ratio < 1:
            self.ratios['tile_ratio'] = self._own.tile_ratio
        if not self.ratios:
            raise ValueError(
                f'{sparse.loaded.name} has nothing to choose: give a config with a sparse '
                'backbone, or with a head or neck that goes by tiles'
            )
        if self.dense.classes != sparse.classes:
            raise ValueError(
                f'{self.dense.loaded.name} and {sparse.loaded.name} predict other classes '
                f'({len(self.dense.classes)} and {len(sparse.classes)}): give models of one task'
            )

    def __call__(self, picture: Picture, **ratios: float) -> Compared:
        """Predict and measure; waits while another call is at it.

        Args:
            picture: of any size.
            **ratios: of the sparse model, in place of those in ``self.ratios``.

        Raises:
            TypeError, ValueError: if a ratio does not fit the model.
        """
        own, loaded = self._own, self.sparse.loaded
        first = ratios.get('keep_ratio', self.ratios.get('keep_ratio'))
        # The config's ratios need not fall as others do.
        if own.keep_ratios and first != own.keep_ratios[0]:
            own = replace(own, keep_ratios=loaded.ladder(first))
        own = replace(own, tile_ratio=ratios.get('tile_ratio', own.tile_ratio))
        with self._lock, threads(self._threads):
            lines = {
                DENSE: as_dense(self.dense.model),
                LEARNED: own,
            }
            models = {DENSE: self.dense, LEARNED: self.sparse}
            found = {kind: _predict(models[kind], picture, lines[kind]) for kind in lines}
            batches = {kind: _batch(models[kind], picture) for kind in lines}
            runs = {kind: line.runner(PARTS[1]) for kind, line in lines.items()}
            times = measure_latency(
                {kind: lambda all_, kind=kind: runs[kind](all_[kind]) for kind in lines},
                [batches],
                rounds=ROUNDS,
                seconds=self._seconds,
                warmup=1,
            )
            sides = {kind: Side(models[kind].loaded, *found[kind], times[kind]) for kind in lines}
            gained = speedup(times[LEARNED], times[DENSE])
            return Compared(sides[DENSE], sides[LEARNED], gained, torch.get_num_threads())


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


def _batch(infer: DynamicInferencer, picture: Picture) -> HostBatch:
    """A picture as the model gets it, normalised."""
    packed = {key: [value] for key, value in infer.reader.pack(picture).items()}
    return host_batch(infer.loaded, packed)
