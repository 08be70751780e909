"""Reads pictures with the loader of a config's test pipeline."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image
from torch import Tensor

from mmdyn.config_parts import class_of, type_name
from mmdyn.datasets.named_steps import NamedSteps
from mmdyn.engine.data_check import argument, typed_leaves
from mmdyn.engine.model_check import channels_of, preprocessor_of
from mmdyn.errors import BadDataError, one_line
from mmdyn.guard import checkpoints_as_data
from mmdyn.pictures import SUFFIXES, Picture, resized, size_of

MAX_PIXELS = 100.0
"""Default limit of a picture's size, in millions of pixels."""
_HOSTS = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg')


class Reader:
    """Reads pictures with a loader and packs them for a model.

    Args:
        loader: a transform from ``img_path`` to ``img``; None = mmcv's with default arguments.
        steps: configs of the transforms after it.
        channels: of the model's input; None = any.
        grey: whether a single channel is accepted as well.
        max_pixels: largest picture, in millions of pixels; ``math.inf`` = no limit.
        suffixes: of picture files.

    Attributes:
        is_mmcvs: whether the loader is mmcv's ``LoadImageFromFile``.

    Raises:
        ValueError: if ``max_pixels`` is not positive.
    """

    def __init__(
        self,
        loader: Any = None,
        steps: Sequence[dict[str, Any]] = (),
        *,
        channels: int | None = None,
        grey: bool = False,
        max_pixels: float = MAX_PIXELS,
        suffixes: Sequence[str] = SUFFIXES,
    ) -> None:
        if not max_pixels > 0:
            raise ValueError(f'max_pixels (in millions) must be positive, got {max_pixels}')
        self.channels, self.max_pixels, self.suffixes = channels, max_pixels, tuple(suffixes)
        self._grey = grey
        self._loader, self._steps = loader or LoadImageFromFile(), NamedSteps(steps)
        self.is_mmcvs = type(self._loader) is LoadImageFromFile

    @property
    def keeps_depth(self) -> bool:
        """Whether the loader may return other dtypes than uint8 (or float32 from uint8)."""
        return not self.is_mmcvs or self._loader.color_type == 'unchanged' or self._reads_tiff_only

    @property
    def _reads_tiff_only(self) -> bool:
        return getattr(self._loader, 'imdecode_backend', None) == 'tifffile'

    def check(self, path: str | Path) -> None:
        """Check a file without decoding it.

        Raises:
            mmdyn.errors.BadDataError: if it is not a picture or has too many pixels.
        """
        if not os.path.isfile(path):  # opening a pipe would block
            raise _unreadable(path, 'it is not a file')
        try:
            hw = size_of(path)
        except (OSError, ValueError) as error:
            raise _unreadable(path, one_line(error)) from error
        except Image.DecompressionBombError as error:
            # Pillow gives no number; with a limit above Pillow's the decoder decides.
            self._check_size(path, 2e-6 * (Image.MAX_IMAGE_PIXELS or 0), str(error))
        else:
            if hw is not None:
                self._check_size(path, hw[0] * hw[1] / 1e6, f'it has {hw[1]}x{hw[0]}')

    def read(self, path: str | Path) -> Picture:
        """Read a file.

        Raises:
            mmdyn.errors.BadDataError: see :meth:`check`; or if it can't be read, or has other
                channels than the model's input.
        """
        self.check(path)
        return self._load(path, Path(path).stem, Path(path))

    def read_resized(self, path: str | Path, hw: tuple[int, int]) -> Tensor:
        """Read a file and resize it to (h, w) = ``hw`` pixels, ignoring the aspect ratio.

        Pictures are not padded: a sparse model skips padding, which would make it look faster than
        on whole pictures.

        Returns:
            (C, h, w), uint8 or float32.

        Raises:
            mmdyn.errors.BadDataError: see :meth:`read`.
        """
        image = resized(self.read(path).image, hw)
        # torch 2.1 does not support uint16.
        image = image if image.dtype == np.uint8 else image.astype(np.float32)
        return torch.from_numpy(image.reshape(*hw, -1)).permute(2, 0, 1)

    def read_image(self, image: Image.Image) -> Picture:
        """Read a PIL image like a file with its content, with EXIF rotation and full bit depth.

        Raises:
            mmdyn.errors.BadDataError: see :meth:`read`.
        """
        name = getattr(image, 'filename', '') or 'array'
        width, height = image.size
        self._check_size(name, width * height / 1e6, f'it has {width}x{height}')
        if image.format == 'EPS':
            raise _unreadable(name, 'PostScript is not supported')
        try:
            image.load()
            content, kind = _encoded(image, self._reads_tiff_only)
        except Exception as error:  # decoders raise various errors
            raise _unreadable(name, one_line(error)) from error
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f'picture.{kind}'
            made.write_bytes(content)
            return self._load(made, 'array', None)

    def take(self, image: np.ndarray, name: str = 'array', path: Path | None = None) -> Picture:
        """Use an array, (h, w, C) or (h, w), in place of the loader's result.

        Raises:
            mmdyn.errors.BadDataError: if shape or dtype differ from the loader's.
        """
        kind_fits = image.dtype.kind in 'uif' if self.keeps_depth else image.dtype == np.uint8
        if getattr(self._loader, 'to_float32', False):
            kind_fits = kind_fits or image.dtype == np.float32
            image = image.astype(np.float32) if kind_fits else image
        image = image.astype(image.dtype.newbyteorder('='), copy=False)  # required by torch
        if not kind_fits or not self._fits(image):
            channels = 'C' if self.channels is None else self.channels
            kind = '' if self.keeps_depth else ' uint8'
            raise BadDataError(
                f'an array must be like what the config reads from a file, (h, w, {channels})'
                f'{kind}, usually BGR; got {image.shape} {image.dtype}'
            )
        return Picture(name, image, path)

    def pack(self, picture: Picture, number: int = 0) -> dict[str, Any]:
        """Run the steps after the loader; ``number`` becomes the ``img_id``.

        Returns ``inputs`` and ``data_samples`` from the host's pipeline.

        Raises:
            mmdyn.errors.BadDataError: naming the file, if a step fails on it.
            ValueError: if the steps return no inputs.
        """
        hw = picture.image.shape[:2]
        known = dict(img_path=None, img_shape=hw, ori_shape=hw, seg_fields=[])
        packed = self._steps({**known, **picture.loaded, 'img': picture.image, 'img_id': number})
        if packed is None or 'inputs' not in packed:
            raise ValueError(
                'the config has no test_dataloader whose pipeline packs pictures for the model: '
                'the pipeline must begin with a loader such as LoadImageFromFile and end with '
                'PackSegInputs or PackDetInputs'
            )
        return packed

    def _check_size(self, name: Any, millions: float, found: str) -> None:
        if millions > self.max_pixels:
            raise BadDataError(
                f'{name} is too large, {found}, the limit is {self.max_pixels:g} million pixels: '
                'use a smaller picture, or raise the limit (--max-pixels, in Python max_pixels=)'
            )

    def _load(self, file: str | Path, name: str, path: Path | None) -> Picture:
        shown = path or name
        try:
            loaded = self._loader(dict(img_path=str(file), img_id=0, seg_fields=[]))
        except Exception as error:  # decoders raise various errors
            raise _unreadable(shown, one_line(error)) from error
        image = (loaded or {}).get('img')
        if not isinstance(image, np.ndarray):
            raise _unreadable(shown, f'{type(self._loader).__name__} returns no array')
        if not self._fits(image):
            raise BadDataError(
                f'{shown} is read as an array {image.shape}, but the model takes (h, w, '
                f'{self.channels}) (model.backbone.in_channels): use other pictures, or change '
                "the test pipeline's first step (color_type, imdecode_backend)"
            )
        self._check_size(shown, image.shape[0] * image.shape[1] / 1e6, f'an array {image.shape}')
        loaded = {key: value for key, value in loaded.items() if key not in ('img', 'img_id')}
        return Picture(name, image, path, loaded if path else loaded | dict(img_path=None))

    def _fits(self, image: np.ndarray) -> bool:
        if image.ndim not in (2, 3) or not image.size:
            return False
        found = 1 if image.ndim == 2 else image.shape[2]
        return self.channels in (None, found) or (self._grey and found == 1)


@checkpoints_as_data()
def reader_of(cfg: Config, max_pixels: float = MAX_PIXELS) -> Reader:
    """Reader for a config's test pipeline.

    Without a test or validation set it reads with mmcv's defaults and can't pack.

    Raises:
        KeyError: if the data set's type is not registered.
        ValueError: if the pipeline does not begin with a loader, or numbers of channels differ.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    loaders = ('test_dataloader', 'val_dataloader')
    leaves = (leaf for loader in loaders for leaf in typed_leaves(cfg, loader))
    dataset = next((leaf for leaf in leaves if leaf.config.get('pipeline')), None)
    pipeline = dataset.config['pipeline'] if dataset else ()
    steps = [step for step in pipeline if 'Annotation' not in str(step.get('type'))]
    # Of the test set's pictures; may include part of the name, '_leftImg8bit.png'.
    suffix = argument(dataset.config, dataset.cls, 'img_suffix') if dataset else None
    own_suffix = [Path(f'name{suffix}').suffix.lower()] if suffix else []
    loader = TRANSFORMS.build(steps[0]) if steps else LoadImageFromFile()
    kind = type(loader)
    if _is_hosts(kind) and not kind.__name__.startswith('Load'):
        raise ValueError(
            f'the test pipeline begins with {kind.__name__}, which does not read pictures: '
            'it must begin with a loader such as LoadImageFromFile'
        )
    preprocessor = preprocessor_of(cfg)
    built = class_of(preprocessor.get('type', ''), cfg.get('default_scope'))
    several = len(preprocessor.get('mean') or ()) > 1
    return Reader(
        loader,
        steps[1:],
        # A custom preprocessor may add channels.
        channels=channels_of(cfg) if built is None or _is_hosts(built) else None,
        # mmseg's expands one channel if it has a mean for each of several.
        grey=several and type_name(preprocessor) == 'SegDataPreProcessor',
        max_pixels=max_pixels,
        suffixes=dict.fromkeys((*SUFFIXES, *own_suffix)),
    )


def _is_hosts(kind: type) -> bool:
    return kind.__module__.split('.')[0] in _HOSTS


def pictures_in(folder: str | Path, reader: Reader, count: int | None = None) -> list[Path]:
    """List and test-read the first ``count`` (None = all) pictures in a folder, at any depth.

    Hidden files are skipped.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no picture, or one that can't be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is not a folder: give one with pictures')
    files = sorted(
        file
        for file in folder.rglob('[!.]*')
        if file.suffix.lower() in reader.suffixes and not file.is_dir()
    )
    if not files:
        raise ValueError(f'{folder} has no picture ({", ".join(reader.suffixes)})')
    for file in files[:count]:
        reader.read(file)
    return files[:count]


def _unreadable(name: Any, reason: str) -> BadDataError:
    return BadDataError(f'{name} is not a readable picture: {reason}. Replace or remove it')


def _encoded(image: Image.Image, as_tiff: bool) -> tuple[bytes, str]:
    """Encode a PIL image losslessly with its EXIF data; returns content and format."""
    if image.mode == 'I':
        low, high = image.getextrema()
        image = image.convert('I;16') if low >= 0 and high < 1 << 16 else image
    # In PNG, Pillow would keep only 16 of 32 bits.
    for kind in ('tiff',) if as_tiff or image.mode == 'I' else ('png', 'tiff'):
        stream = io.BytesIO()
        try:
            image.save(stream, kind, exif=image.getexif(), compress_level=1)
        except OSError:  # raised if the format does not support such pixels
            continue
        return stream.getvalue(), kind
    return _encoded(image.convert('RGB'), as_tiff)
