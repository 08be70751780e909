"""One picture through a dense and a sparse model: predictions, multiply-adds, times."""

from __future__ import annotations

from dataclasses import replace

from mmdyn.analysis.counting import count_macs
from mmdyn.analysis.images import host_batch
from mmdyn.analysis.lines import PARTS, as_dense, as_set, chosen_by
from mmdyn.analysis.measuring import measure, threads
from mmdyn.analysis.rows import Row, rows_of
from mmdyn.apis import DynamicInferencer, Picture
from mmdyn.sparsity import TopKPolicy


class Comparer:
    """Compares a sparse model with a dense one; not to be called by two threads at once.

    ``dense`` is another model of the same classes, or None: ``sparse`` with its ratios at their
    highest. The policy is always top-k: under others a ratio may not set how much is kept.
    ``cpu_threads`` are torch's, ``seconds`` measured for each picture, if 5 rounds take less.

    Attributes:
        ratios: ``keep_ratio`` (the first predictor's) and ``tile_ratio``, as the config has them.

    Raises:
        ValueError: if ``sparse`` has nothing to choose, or the classes differ.
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
        self._cpu_threads, self._seconds = cpu_threads, seconds
        self._own = own = chosen_by(as_set(sparse.model), TopKPolicy())
        self.ratios = {'keep_ratio': own.keep_ratios[0]} if own.keep_ratios else {}
        # Built with 0 or 1, a head lacks what another ratio needs.
        if own.tile_ratio is not None and 0 < own.tile_ratio < 1:
            self.ratios['tile_ratio'] = own.tile_ratio
        name, other = sparse.loaded.name, self.dense.loaded.name
        if not self.ratios:
            raise ValueError(f'{name} has nothing to choose: give a sparse model')
        if self.dense.classes != sparse.classes:
            raise ValueError(f'{other} and {name} have different classes: give models of one task')

    def __call__(self, picture: Picture, **ratios: float) -> tuple[list, list[Row], list[int]]:
        """Predict and measure, the dense model first; ``ratios`` replace the config's.

        Returns inferences, costs, and the multiply-adds of backbones with their predictors.
        Both are timed on the picture as the sparse model's config resizes and normalises it.

        Raises:
            TypeError, ValueError: if a ratio does not fit the model.
        """
        own, ratios = self._own, {**self.ratios, **ratios}
        # The config's own ratios need not fall as a ladder does.
        if own.keep_ratios and ratios['keep_ratio'] != own.keep_ratios[0]:
            own = replace(own, keep_ratios=self.sparse.loaded.ladder(ratios['keep_ratio']))
        own = replace(own, tile_ratio=ratios.get('tile_ratio', own.tile_ratio))
        lines, found = (as_dense(self.dense.model), own), []
        with threads(self._cpu_threads):
            for infer, line in zip((self.dense, self.sparse), lines, strict=True):
                line.apply()
                found += infer(picture.image)
            packed = {key: [value] for key, value in self.sparse.reader.pack(picture).items()}
            batch = host_batch(self.sparse.loaded, packed)
            runs = {line.name: line.runner(PARTS[1]) for line in lines}
            timing = dict(rounds=5, seconds=self._seconds, warmup=0)  # counting warms them up
            costs = measure(runs, [batch], memory=False, **timing)
            macs = [count_macs(lambda line=line: line.runner(PARTS[0])(batch)) for line in lines]
        return found, rows_of(lines, costs), macs
