"""Inference on pictures: predictions and the locations that were kept."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmdyn.analysis.lines import Line, as_set, chosen_by, restored
from mmdyn.apis.sources import Pictures, Source
from mmdyn.checks import check_integer
from mmdyn.engine.loading import LoadedModel, load_model
from mmdyn.engine.picture_reader import MAX_PIXELS, Reader, reader_of
from mmdyn.engine.predictions import PREDICTIONS, Inference, classes_of
from mmdyn.engine.recording import choices_of, record
from mmdyn.errors import BadDataError, one_line
from mmdyn.guard import checkpoints_as_data
from mmdyn.models.policies import build_policy
from mmdyn.models.prepared import prepare_for_inference
from mmdyn.pictures import Picture
from mmdyn.sparsity import Policy


class DynamicInferencer:
    """Runs the segmentor, detector or classifier of a config on pictures.

    Similar to the hosts' inferencers. Keep ratios, tile ratio and policy can be set per call, and
    an :class:`Inference` also holds the decisions.

    Args:
        config: a file, or a packaged one as ``mmdyn::NAME.py``.
        checkpoint: path or address of the whole model's weights; None = random weights.
        device: where the model runs; None = a GPU if there is one.
        cfg_options: overrides of the config, keys with dots.
        trust_checkpoint: whether to unpickle arbitrary objects in the file.
        max_pixels: largest picture, in millions of pixels; ``math.inf`` = no limit. Does not apply
            to arrays.
        prepare: whether to speed up the model with :func:`mmdyn.prepare_for_inference` (CPU only);
            it can't be trained then.

    Raises:
        FileNotFoundError, ImportError, ValueError: see
            :func:`mmdyn.engine.loading.load_model`; or the config's test pipeline does not read
            pictures from files.

    Example:
        >>> infer = DynamicInferencer('configs/upernet_dynswin_mini_ft.py', 'iter_450.pth')
        >>> for result in infer('pictures/', keep_ratio=0.7):
        ...     print(result.picture.name, result.labels.shape)
    """

    def __init__(
        self,
        config: str,
        checkpoint: str | None = None,
        *,
        device: str | torch.device | None = None,
        cfg_options: dict[str, Any] | None = None,
        trust_checkpoint: bool = False,
        max_pixels: float = MAX_PIXELS,
        prepare: bool = True,
    ) -> None:
        if device is None:
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.loaded: LoadedModel = load_model(
            config,
            checkpoint,
            device=device,
            cfg_options=cfg_options,
            trust_checkpoint=trust_checkpoint,
        )
        cfg = self.loaded.cfg
        with checkpoints_as_data(trust_checkpoint):
            self.reader: Reader = reader_of(cfg, max_pixels)
        self.classes, self.palette = classes_of(cfg, self.loaded.dataset_meta)
        if prepare and self.loaded.device.type == 'cpu':
            prepare_for_inference(self.model)

    @property
    def model(self) -> nn.Module:
        """The host's model, in evaluation mode."""
        return self.loaded.model

    def __call__(
        self,
        sources: Source | Sequence[Source] | Pictures,
        *,
        batch_size: int = 1,
        keep_ratio: float | None = None,
        keep_ratios: Sequence[float] | None = None,
        tile_ratio: float | None = None,
        policy: Policy | dict[str, Any] | None = None,
    ) -> Iterator[Inference]:
        """Predict lazily, in order.

        Args:
            sources: see :class:`mmdyn.apis.sources.Pictures`.
            batch_size: pictures per forward pass.
            keep_ratio: of the first predictor, in this call; later ones decrease from it.
            keep_ratios: instead, one per predictor.
            tile_ratio: fraction of tiles of a head or neck that chooses tiles.
            policy: for locations and tiles, an instance or a config.

        Raises:
            FileNotFoundError, TypeError, ValueError: before any prediction, if a source can't be
                read or an argument does not fit the model.
        """
        check_integer('batch_size', batch_size)
        pictures = sources if isinstance(sources, Pictures) else Pictures(sources, self.reader)
        line = self._line(keep_ratio, keep_ratios, tile_ratio, policy)
        with restored(self.model):
            line.apply()  # raises if an argument does not fit
            self.loaded.report.check_in_use(self.model)
        return self._predict(pictures, batch_size, line)

    def _line(
        self,
        keep_ratio: float | None,
        keep_ratios: Sequence[float] | None,
        tile_ratio: float | None,
        policy: Policy | dict[str, Any] | None,
    ) -> Line:
        """The model with the settings of a call."""
        line, name = as_set(self.model), self.loaded.name
        if keep_ratio is not None and keep_ratios is not None:
            raise ValueError('give keep_ratio or keep_ratios, not both')
        if keep_ratio is not None or keep_ratios is not None:
            if not self.loaded.is_sparse:
                raise ValueError(
                    f'keep_ratio and keep_ratios need a sparse backbone, {name} has a '
                    f'{type(self.loaded.backbone).__name__}: leave them out'
                )
            if keep_ratios is None:
                keep_ratios = self.loaded.ladder(keep_ratio)
            line = replace(line, keep_ratios=keep_ratios)
        if tile_ratio is not None:
            if line.tile_policy is None:
                raise ValueError(
                    f'tile_ratio needs a head or neck that chooses tiles, {name} has none: leave '
                    'it out'
                )
            line = replace(line, tile_ratio=tile_ratio)
        if policy is not None:
            if line.policy is line.tile_policy is None:
                raise ValueError(f'{name} makes no decisions: leave policy out')
            line = chosen_by(line, build_policy(policy))
        return line

    def _predict(self, pictures: Pictures, batch_size: int, line: Line) -> Iterator[Inference]:
        reading = iter(pictures)
        while batch := list(itertools.islice(reading, batch_size)):
            with restored(self.model):
                line.apply()
                results = self._predict_batch(batch)
            yield from results

    def _predict_batch(self, pictures: Sequence[Picture]) -> list[Inference]:
        """Predict on some pictures with the current settings."""
        packed = [(picture, self.reader.pack(picture, i)) for i, picture in enumerate(pictures)]
        # mmdet pads batches; mmseg needs pictures of one size.
        by_size = self.loaded.cfg.default_scope == 'mmseg'
        groups = itertools.groupby(packed, lambda pair: by_size and pair[1]['inputs'].shape)
        return [result for _, group in groups for result in self._predict_packed(list(group))]

    @torch.no_grad()
    def _predict_packed(self, packed: list[tuple[Picture, dict[str, Any]]]) -> list[Inference]:
        pictures = [picture for picture, _ in packed]
        batch = {key: [one[key] for _, one in packed] for key in ('inputs', 'data_samples')}
        with _naming(pictures), record(self.model) as recording:
            data = self.model.data_preprocessor(batch, False)
            shapes = [sample.metainfo['img_shape'][:2] for sample in data['data_samples']]
            start = time.perf_counter()
            samples = self.model(**data, mode='predict')
            seconds = (time.perf_counter() - start) / len(pictures)
        if not any(name in samples[0] for name in PREDICTIONS):
            raise BadDataError(
                f'{self.loaded.name} predicts {", ".join(samples[0].keys()) or "nothing"}, but '
                f'only {", ".join(PREDICTIONS)} can be drawn and written'
            )
        made, hw = [], tuple(data['inputs'].shape[-2:])
        for i, (picture, sample, shape) in enumerate(zip(pictures, samples, shapes, strict=True)):
            choices, tiles = choices_of(self.model, recording, i, shape, hw)
            if 'pred_score' in sample:  # a classifier's pipeline crops
                picture = replace(picture, image=packed[i][1]['inputs'].permute(1, 2, 0).numpy())
            made.append(
                Inference(picture, sample, choices, tiles, self.classes, self.palette, seconds)
            )
        return made


@contextmanager
def _naming(pictures: Sequence[Picture]) -> Iterator[None]:
    """Name the pictures in errors raised by their prediction."""
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:  # raised by torch and the hosts
        shown = ', '.join(
            f'{p.path or p.name} ({p.image.shape[1]}x{p.image.shape[0]} pixels)' for p in pictures
        )
        raise BadDataError(
            f'prediction on {shown} failed: {one_line(error)}. Remove or replace the picture'
        ) from error
