"""A model to be called on pictures: predictions, and where they were computed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdyn.analysis.loading import LoadedModel, load_model
from mmdyn.apis.inference import PREDICTIONS, Choice, Inference
from mmdyn.apis.recording import Recording, record
from mmdyn.apis.sources import Pictures, Source
from mmdyn.engine.data_check import metainfo_of, typed_leaves
from mmdyn.engine.reading import MAX_PIXELS, Reader, reader_of
from mmdyn.errors import BadDataError, one_line
from mmdyn.guard import checkpoints_as_data
from mmdyn.models.deciding import KEEP_EVERYTHING, deciding_parts, missing_in_use, tile_part
from mmdyn.models.policies import build_policy
from mmdyn.pictures import Picture
from mmdyn.sparsity import Decision, Policy


class DynamicInferencer:
    """A segmentor or detector of a config, to be called on pictures.

    In the spirit of the hosts' inferencers; a call may choose other keep ratios, another
    fraction of tiles or another policy, and an :class:`Inference` also tells what was chosen.

    Args:
        config: a file, or a packaged one as ``mmdyn::NAME.py``.
        checkpoint: path or address of the whole model's weights; None = random ones.
        device: where the model runs; None = a GPU if there is one.
        cfg_options: overrides of the config, keys with dots.
        trust_checkpoint: whether the file may hold more than data.
        max_pixels: most pixels of a picture, in millions; ``math.inf`` = any number. Arrays
            may have more.

    Raises:
        FileNotFoundError, ImportError, ValueError: see
            :func:`mmdyn.analysis.loading.load_model`; or the config's test pipeline does
            not read pictures from files.

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
        """Predict, one picture after the other, as results are asked for.

        Args:
            sources: see :class:`mmdyn.apis.sources.Pictures`.
            batch_size: pictures of a forward pass.
            keep_ratio: the first predictor's in this call; later ones fall from it.
            keep_ratios: one per predictor instead.
            tile_ratio: fraction of tiles of a head or neck that goes by tiles.
            policy: how locations and tiles are chosen, an instance or a config.

        Raises:
            FileNotFoundError, TypeError, ValueError: before anything is predicted, if a
                source can't be read or something asked for does not fit the model.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f'batch_size must be 1 or more, got {batch_size!r}')
        if isinstance(sources, Pictures) and sources.reader is not self.reader:
            sources = sources.sources
        pictures = sources if isinstance(sources, Pictures) else Pictures(sources, self.reader)
        if keep_ratio is not None:
            if keep_ratios is not None:
                raise ValueError('give keep_ratio or keep_ratios, not both')
            self._check_sparse('keep_ratio')
            keep_ratios = self.loaded.ladder(keep_ratio)
        settings = self._settings(keep_ratios, tile_ratio, policy)
        with self._set(settings):  # says what does not fit, at once
            self._check_trained()
        return self._predict(pictures, batch_size, settings)

    def _check_sparse(self, name: str) -> None:
        if not self.loaded.is_sparse:
            raise ValueError(
                f'{name} is for a sparse backbone, {self.loaded.name} has a '
                f'{type(self.loaded.backbone).__name__}: leave it out'
            )

    def _check_trained(self) -> None:
        """Refuse to predict with what a checkpoint lacks; without one, all is random."""
        lost = [key for keys in missing_in_use(self.model, self.loaded.missing) for key in keys]
        if lost:
            raise ValueError(
                f'the {self.loaded.weights} lack {len(lost)} parameters that {self.loaded.name} '
                f'predicts with, e.g. {lost[0]}: give a checkpoint of the whole model. One of a '
                f'dense model predicts where everything is kept: {KEEP_EVERYTHING}'
            )

    def _settings(
        self,
        keep_ratios: Sequence[float] | None,
        tile_ratio: float | None,
        policy: Policy | dict[str, Any] | None,
    ) -> list[tuple[Callable[[Any], Any], Any, Any]]:
        """What a call sets: a setter, the new value, the old one."""
        backbone, tiles = self.loaded.backbone, tile_part(self.model)
        settings: list[tuple[Callable[[Any], Any], Any, Any]] = []
        if keep_ratios is not None:
            self._check_sparse('keep_ratios')
            settings.append((backbone.set_keep_ratios, keep_ratios, backbone.keep_ratios))
        if tile_ratio is not None:
            if tiles is None:
                raise ValueError(
                    f'tile_ratio is for a head or neck that goes by tiles, {self.loaded.name} has '
                    'none: leave it out'
                )
            settings.append((tiles.set_tile_ratio, tile_ratio, tiles.tile_ratio))
        if policy is not None:
            deciding = deciding_parts(self.model)
            if not deciding:
                raise ValueError(f'{self.loaded.name} decides nothing: leave policy out')
            policy = build_policy(policy)
            for part in deciding:
                settings.append((_policy_setter(part), policy, part.policy))
        return settings

    @contextmanager
    def _set(self, settings: list[tuple[Callable[[Any], Any], Any, Any]]) -> Iterator[None]:
        """Set for a while what a call asks for."""
        try:
            for setter, value, _ in settings:
                setter(value)
            yield
        finally:
            for setter, _, before in settings:
                setter(before)

    def _predict(
        self,
        pictures: Pictures,
        batch_size: int,
        settings: list[tuple[Callable[[Any], Any], Any, Any]],
    ) -> Iterator[Inference]:
        reading = iter(pictures)
        while batch := list(itertools.islice(reading, batch_size)):
            with self._set(settings):
                results = self.predict_batch(batch)
            yield from results

    @torch.no_grad()
    def predict_batch(self, pictures: Sequence[Picture]) -> list[Inference]:
        """Predict on some pictures at once, as the model stands.

        Args:
            pictures: of any sizes; mmseg takes those of one size at a time.

        Raises:
            mmdyn.errors.BadDataError: naming the picture, if the model fails on it, as on one
                that is too small for it.
        """
        packed = [self.reader.pack(picture, i) for i, picture in enumerate(pictures)]
        if self.loaded.cfg.default_scope != 'mmseg':  # the host pads
            return self._predict_packed(pictures, packed)
        made = []
        pairs = zip(pictures, packed, strict=True)
        for _, group in itertools.groupby(pairs, key=lambda pair: pair[1]['inputs'].shape):
            made += self._predict_packed(*zip(*group, strict=True))
        return made

    def _predict_packed(
        self, pictures: Sequence[Picture], packed: Sequence[dict[str, Any]]
    ) -> list[Inference]:
        batch = {key: [one[key] for one in packed] for key in ('inputs', 'data_samples')}
        with _naming(pictures), record(self.model) as recording:
            data = self.model.data_preprocessor(batch, False)
            shapes = [sample.metainfo['img_shape'][:2] for sample in data['data_samples']]
            start = time.perf_counter()
            samples = self.model(**data, mode='predict')
            seconds = (time.perf_counter() - start) / len(pictures)
        windows = windows_of(self.model, tuple(data['inputs'].shape[-2:]))
        if not any(name in samples[0] for name in PREDICTIONS):
            raise BadDataError(
                f'{self.loaded.name} predicts {", ".join(samples[0].keys()) or "nothing"}, and '
                f'only {", ".join(PREDICTIONS)} can be drawn and written'
            )
        made = []
        for i, (picture, sample, shape) in enumerate(zip(pictures, samples, shapes, strict=True)):
            choices, tiles = choices_of(self.model, recording, i, shape, windows)
            made.append(
                Inference(picture, sample, choices, tiles, self.classes, self.palette, seconds)
            )
        return made


def _policy_setter(part: Any) -> Callable[[Any], None]:
    return lambda policy: setattr(part, 'policy', policy)


@contextmanager
def _naming(pictures: Sequence[Picture]) -> Iterator[None]:
    """Have errors name the pictures that are predicted on."""
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:  # how torch and the hosts refuse
        shown = ', '.join(
            f'{p.path or p.name} ({p.image.shape[1]}x{p.image.shape[0]} pixels)' for p in pictures
        )
        raise BadDataError(
            f"{shown} can't be predicted on: {one_line(error)}. Leave it out, or give another one "
            '(--traceback shows where)'
        ) from error


Colour = tuple[int, int, int]


def classes_of(
    cfg: Any, checkpoint_meta: Mapping[str, Any] | None = None
) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and colours of a config's classes, without its data.

    Those of its test set, or else its validation set, of whatever is in it if it is wrapped;
    if the config names none, those that the checkpoint was trained with.

    Args:
        cfg: a whole config.
        checkpoint_meta: what a checkpoint says of its data set, ``classes`` and ``palette``.

    Raises:
        KeyError: if the data set's type is in no registry.
        ValueError: if nothing names the classes.
    """
    for loader in ('test_dataloader', 'val_dataloader'):
        for _, leaf, kind in typed_leaves(cfg, loader):
            meta, own = metainfo_of(leaf, kind), getattr(kind, 'METAINFO', {})
            if not meta.get('classes'):
                continue
            palette = own.get('palette')
            if isinstance(palette, list | tuple) and meta['palette'] == palette:
                # The config may have chosen some of the classes: each keeps its colour.
                colours = dict(zip(own.get('classes') or (), palette, strict=False))
                meta['palette'] = [colours.get(name) for name in meta['classes']]
            return named_classes(meta)
    if (checkpoint_meta or {}).get('classes'):
        return named_classes(checkpoint_meta)
    raise ValueError(
        'neither the data set of the config (test_dataloader, val_dataloader) nor the checkpoint '
        'names classes: add metainfo=dict(classes=(…)) to test_dataloader.dataset'
    )


def named_classes(meta: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and colours of classes from what a data set says of itself.

    Args:
        meta: with ``classes``, and ``palette`` if it has one; colours that it lacks are chosen.

    Raises:
        ValueError: if the classes are no list of names, or a colour is none.
    """
    classes, palette = meta.get('classes') or (), meta.get('palette')
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(
            'metainfo.classes must be a list of names, or a file with one in each line (and a '
            f'single class is written (NAME,)), got {classes!r}'
        )
    # mmdet's may be 'random'.
    given = list(palette)[: len(classes)] if isinstance(palette, list | tuple) else []
    for colour in given:
        if colour is not None and len(colour) != 3:
            raise ValueError(f'metainfo.palette must hold (red, green, blue), got {colour!r}')
    pairs = itertools.zip_longest(given, spread_colours(len(classes)))
    return tuple(map(str, classes)), tuple(
        chosen if own is None else tuple(map(int, own)) for own, chosen in pairs
    )


def spread_colours(count: int) -> list[Colour]:
    """As many RGB colours, far from each other, for classes without a palette."""
    import matplotlib as mpl

    colours = mpl.colormaps['turbo'](np.linspace(0.05, 0.95, max(count, 1)))
    return [tuple(int(255 * value) for value in colour[:3]) for colour in colours][:count]


Window = tuple[int, int, int, int]


def windows_of(model: nn.Module, hw: tuple[int, int]) -> list[Window]:
    """Where the parts of an input lie that a segmentor looks at one by one: (y1, x1, y2, x2).

    As mmseg's ``slide_inference`` cuts it; the whole of it where nothing slides.

    Args:
        model: of a host.
        hw: (h, w) of the input in pixels.
    """
    test_cfg = getattr(model, 'test_cfg', None) or {}
    if test_cfg.get('mode') != 'slide':
        return [(0, 0, *hw)]
    firsts = []
    for side, crop, stride in zip(hw, test_cfg['crop_size'], test_cfg['stride'], strict=True):
        count = max(side - crop + stride - 1, 0) // stride + 1
        ends = [min(i * stride + crop, side) for i in range(count)]
        firsts.append([(max(end - crop, 0), end) for end in ends])
    return [(y1, x1, y2, x2) for y1, y2 in firsts[0] for x1, x2 in firsts[1]]


def choices_of(
    model: nn.Module,
    recording: Recording,
    index: int,
    shape: tuple[int, int],
    windows: Sequence[Window],
) -> tuple[tuple[Choice, ...], Choice | None]:
    """What was chosen in one picture of a batch.

    Args:
        model: that decided.
        recording: what it decided.
        index: of the picture.
        shape: (h, w) of the picture in the model's input.
        windows: see :func:`windows_of`.

    Returns:
        One choice per predictor of the backbone, and that of tiles, if any. Of
        overlapping windows, a location is kept where any of them kept it.
    """
    backbone, tiles = getattr(model, 'backbone', None), tile_part(model)
    choices = []
    if recording.locations:
        count = len(recording.locations) // len(windows)
        stride = backbone.sparse_stride
        for i in range(count):
            decisions = recording.locations[i::count]
            choices.append(_join(decisions, index, stride, shape, windows))
    if not recording.tiles:
        return tuple(choices), None
    stride = tiles.tile_size * getattr(tiles, 'fine_stride', tiles.finest_stride)
    return tuple(choices), _join(recording.tiles, index, stride, shape, windows)


def _join(
    decisions: Sequence[Decision],
    index: int,
    stride: int,
    shape: tuple[int, int],
    windows: Sequence[Window],
) -> Choice:
    """Lay the windows' decisions on one map of locations."""
    picture_hw = (shape[0] / stride, shape[1] / stride)
    maps = [_arrays(decision, index) for decision in decisions]
    if len(windows) == 1:
        return Choice(*maps[0], picture_hw)
    sides = tuple(max(window[i] for window in windows) for i in (2, 3))
    hw = tuple(-(-side // stride) for side in sides)
    kept, scores, real = np.zeros(hw, bool), np.zeros(hw, np.float32), np.zeros(hw, bool)
    # A location of the whole is that of a window which holds its middle, or the nearest there:
    # the window's map may end before the window does.
    middles = [
        np.minimum((np.arange(count) + 0.5) * stride, side - 0.5)
        for count, side in zip(hw, sides, strict=True)
    ]
    for (keep, score, valid), (top, left, bottom, right) in zip(maps, windows, strict=True):
        y, x = (
            np.flatnonzero((middle >= first) & (middle < last))
            for middle, first, last in zip(middles, (top, left), (bottom, right), strict=True)
        )
        inner = np.ix_(
            np.minimum((middles[0][y] - top) // stride, keep.shape[0] - 1).astype(int),
            np.minimum((middles[1][x] - left) // stride, keep.shape[1] - 1).astype(int),
        )
        place = np.ix_(y, x)
        kept[place] |= keep[inner]
        real[place] |= valid[inner]
        scores[place] = np.maximum(scores[place], score[inner])
    return Choice(kept, scores, real, picture_hw)


def _arrays(decision: Decision, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W) each: what was kept of an image, the probability of that, what is real."""
    keep = decision.keep_mask[index].view(decision.hw).cpu().numpy() > 0
    score = decision.scores[index].float().exp().view(decision.hw).cpu().numpy()
    if decision.valid_mask is None:
        return keep, score, np.ones(decision.hw, bool)
    return keep, score, decision.valid_mask[index].view(decision.hw).cpu().numpy()
