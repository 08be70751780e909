"""Predictions on a picture, and names and colours of classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np

from mmdyn.engine.data_check import metainfo_of, typed_leaves
from mmdyn.engine.recording import Choice
from mmdyn.pictures import Picture

Colour = tuple[int, int, int]
PREDICTIONS = ('pred_sem_seg', 'pred_panoptic_seg', 'pred_instances', 'pred_score')
"""Predictions in a host's sample that can be shown."""

INSTANCE_OFFSET = 1000
"""mmdet's encoding of panoptic predictions: class + 1000 · instance, where instances of things
count from 1 and stuff is 0."""


@dataclass(frozen=True, eq=False)
class Instance:
    """A detected object.

    Attributes:
        label: class index.
        score: in [0, 1].
        box: (x1, y1, x2, y2) in pixels, around the mask if the model predicts no box.
        mask: (h, w) bool, or None.
    """

    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Inference:
    """A prediction.

    Attributes:
        picture: the input.
        sample: the host's, in the picture's pixels.
        choices: one per predictor of the backbone, in order; empty for a dense one.
        tiles: of a head or neck that chooses tiles, or None.
        classes: names by class index.
        palette: RGB of each class.
        seconds: time of the forward pass divided by its batch size.
    """

    picture: Picture
    sample: Any
    choices: tuple[Choice, ...]
    tiles: Choice | None
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    seconds: float

    @property
    def labels(self) -> np.ndarray | None:
        """(h, w) int64 class of each pixel; None for a model that predicts instances only.

        With one output channel it is 1 above the threshold, else 0. Pixels without a class in
        panoptic predictions are :attr:`void`.
        """
        segments = _map_of(self.sample, 'pred_panoptic_seg')
        if segments is None:
            return _map_of(self.sample, 'pred_sem_seg')
        labels = segments % INSTANCE_OFFSET
        return np.where(labels < len(self.classes), labels, self.void)

    @property
    def void(self) -> int:
        """Label of pixels without a class (255, or 65535 with more than 255 classes)."""
        return 255 if len(self.classes) <= 255 else 65535

    @property
    def segment_map(self) -> np.ndarray | None:
        """(h, w) int64 segment of each pixel, from 1, 0 = none; None if not panoptic."""
        segments = _map_of(self.sample, 'pred_panoptic_seg')
        if segments is None:
            return None
        found = self._segment_ids(segments)
        return np.where(np.isin(segments, found), np.searchsorted(found, segments) + 1, 0)

    def segments(self) -> list[dict[str, Any]]:
        """Segments of a panoptic prediction, by id.

        Each has ``id``, ``class`` (name), ``is_thing`` (a countable object) and ``area`` (pixels).
        """
        segments = _map_of(self.sample, 'pred_panoptic_seg')
        return [
            {
                'id': number,
                'class': self.name_of(int(segment) % INSTANCE_OFFSET),
                'is_thing': bool(segment >= INSTANCE_OFFSET),
                'area': int((segments == segment).sum()),
            }
            for number, segment in enumerate(self._segment_ids(segments), 1)
        ]

    def _segment_ids(self, segments: np.ndarray) -> np.ndarray:
        """The host's ids with a class, sorted."""
        ids = np.unique(segments)
        return ids[ids % INSTANCE_OFFSET < len(self.classes)]

    def instances(self, min_score: float = 0.3) -> list[Instance] | None:
        """Instances with at least this score; None for a model without instances."""
        found = getattr(self.sample, 'pred_instances', None)
        if found is None:
            return None
        found = found.cpu().numpy()
        masks = found.masks if 'masks' in found else [None] * len(found)
        boxes = found.bboxes if 'bboxes' in found else np.zeros((len(found), 4))
        return [
            Instance(
                int(found.labels[i]),
                float(found.scores[i]),
                _box_of(boxes[i], masks[i]),
                None if masks[i] is None else np.asarray(masks[i], bool),
            )
            for i in np.flatnonzero(found.scores >= min_score)
        ]

    def top(self, count: int = 5) -> list[tuple[int, float]] | None:
        """Most probable classes of the picture with probabilities; None unless a classifier's."""
        scores = getattr(self.sample, 'pred_score', None)
        if scores is None:
            return None
        best = scores.topk(min(count, len(scores)))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def name_of(self, label: int) -> str:
        """Name of a class, or its index if it has none."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def to_dict(self, min_score: float = 0.3) -> dict[str, Any]:
        """Convert to a dict for JSON.

        Includes ``classes`` (fraction of pixels per class) for segmentors; those and ``segments``
        (see :meth:`segments`) for panoptic models; ``instances`` with at least ``min_score`` for
        models that predict some; ``top`` (the five most probable classes) for classifiers.
        """
        height, width = self.picture.image.shape[:2]
        found: dict[str, Any] = {
            'name': self.picture.name,
            'path': None if self.picture.path is None else str(self.picture.path),
            'size': [height, width],
            'kept_fractions': [round(choice.fraction, 4) for choice in self.choices],
            'milliseconds': round(1000 * self.seconds, 2),
        }
        if self.tiles is not None:
            found['kept_tiles'] = round(self.tiles.fraction, 4)
        if (labels := self.labels) is not None:
            classes, counts = np.unique(labels[labels != self.void], return_counts=True)
            shares = (counts / labels.size).round(4).tolist()
            found['classes'] = dict(zip(map(self.name_of, classes.tolist()), shares, strict=True))
        if (top := self.top()) is not None:
            found['top'] = [
                {'class': self.name_of(label), 'label': label, 'score': round(score, 4)}
                for label, score in top
            ]
        if self.segment_map is not None:
            found['segments'] = self.segments()
        if (instances := self.instances(min_score)) is not None:
            found['instances'] = [self._instance_dict(one) for one in instances]
        return found

    def _instance_dict(self, instance: Instance) -> dict[str, Any]:
        listed = {
            'class': self.name_of(instance.label),
            'score': round(instance.score, 4),
            'box': [round(value, 1) for value in instance.box],
        }
        if instance.mask is not None:
            contours, _ = cv2.findContours(
                instance.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            listed['polygons'] = [contour.ravel().tolist() for contour in contours]
        return listed


def _map_of(sample: Any, name: str) -> np.ndarray | None:
    """(h, w) int64 map in a sample; None if it has none of that name."""
    field = getattr(sample, name, None)
    if field is None:
        return None
    # Attribute names of mmseg and mmdet; one output channel gives floating-point zeros and ones.
    values = field.data if 'data' in field else field.sem_seg
    return values.reshape(values.shape[-2:]).long().cpu().numpy()


def _box_of(box: np.ndarray, mask: np.ndarray | None) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of an instance: the host's, or around its mask if that is empty."""
    x1, y1, x2, y2 = box.tolist()
    if (x2 > x1 and y2 > y1) or mask is None or not mask.any():
        return x1, y1, x2, y2
    x, y, width, height = map(float, cv2.boundingRect(mask.astype(np.uint8)))
    return x, y, x + width, y + height


def classes_of(
    cfg: Any, checkpoint_meta: Mapping[str, Any] | None = None
) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and colours of a config's classes, without building its data.

    From the test set, else the validation set (the innermost if wrapped), else the ``dataset_meta``
    of the checkpoint.

    Raises:
        KeyError: if the data set's type is not registered.
        ValueError: if no class names are found.
    """
    for loader in ('test_dataloader', 'val_dataloader'):
        for leaf in typed_leaves(cfg, loader):
            meta, own = metainfo_of(leaf), getattr(leaf.cls, 'METAINFO', {})
            if not meta.get('classes'):
                continue
            palette = own.get('palette')
            if isinstance(palette, list | tuple) and meta['palette'] == palette:
                # If the config selects classes, they keep their colours.
                colours = dict(zip(own.get('classes') or (), palette, strict=False))
                meta['palette'] = [colours.get(name) for name in meta['classes']]
            return named_classes(meta)
    if (checkpoint_meta or {}).get('classes'):
        return named_classes(checkpoint_meta)
    raise ValueError(
        'neither the data set of the config (test_dataloader, val_dataloader) nor the '
        'checkpoint has class names: add metainfo=dict(classes=(…)) to test_dataloader.dataset'
    )


def named_classes(meta: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and colours of classes in a data set's metainfo; missing colours are generated.

    Raises:
        ValueError: if the classes are not a list of names, or a colour is invalid.
    """
    classes, palette = meta.get('classes') or (), meta.get('palette')
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(
            'metainfo.classes must be a list of names, or a file with one per line (a single class '
            f'is written (NAME,)), got {classes!r}'
        )
    # May be 'random' in mmdet.
    given = list(palette)[: len(classes)] if isinstance(palette, list | tuple) else []
    for colour in given:
        if colour is not None and len(colour) != 3:
            raise ValueError(f'metainfo.palette must hold (red, green, blue), got {colour!r}')
    spread = mpl.colormaps['turbo'](np.linspace(0.05, 0.95, len(classes)), bytes=True)[:, :3]
    colours = [
        tuple(map(int, chosen if own is None else own))
        for own, chosen in itertools.zip_longest(given, spread)
    ]
    return tuple(map(str, classes)), tuple(colours)
