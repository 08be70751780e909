"""Pictures read as a config reads them: by the first step of its test pipeline."""

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
"""Default size limit of a picture, in millions of pixels."""
_HOSTS = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg')


class Reader:
    """Reads pictures by a loader, and packs them for a model.

    Args:
        loader: a transform that takes ``img_path`` and gives ``img``; None = mmcv's with its
            default arguments.
        steps: configs of the transforms that follow it.
        channels: that the model takes; None = any.
        grey: whether it also takes a single channel.
        max_pixels: most pixels of a picture, in millions; ``math.inf`` = any number.
        suffixes: endings of picture files.

    Attributes:
        is_mmcvs: whether the loader is mmcv's ``LoadImageFromFile``.

    Raises:
        ValueError: if ``max_pixels`` is not above 0.
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
            raise ValueError(f'max_pixels must be above 0, in millions, got {max_pixels}')
        self.channels, self.max_pixels, self.suffixes = channels, max_pixels, tuple(suffixes)
        self._grey = grey
        self._loader, self._steps = loader or LoadImageFromFile(), NamedSteps(steps)
        self.is_mmcvs = type(self._loader) is LoadImageFromFile

    @property
    def keeps_depth(self) -> bool:
        """Whether the loader may give other dtypes than uint8 (and float32 made of that)."""
        return not self.is_mmcvs or self._loader.color_type == 'unchanged' or self._reads_tiff_only

    @property
    def _reads_tiff_only(self) -> bool:
        return getattr(self._loader, 'imdecode_backend', None) == 'tifffile'

    def check(self, path: str | Path) -> None:
        """Check a file without decoding it.

        Raises:
            mmdyn.errors.BadDataError: naming it, if it is no picture or has too many pixels.
        """
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise _unreadable(path, 'it is no file')
        try:
            hw = size_of(path)
        except (OSError, ValueError) as error:
            raise _unreadable(path, one_line(error)) from error
        except Image.DecompressionBombError as error:
            # Pillow does not say how many; if more are allowed than it allows, the decoder decides.
            self._check_size(path, 2e-6 * (Image.MAX_IMAGE_PIXELS or 0), str(error))
        else:
            if hw is not None:
                self._check_size(path, hw[0] * hw[1] / 1e6, f'it has {hw[1]}x{hw[0]}')

    def read(self, path: str | Path) -> Picture:
        """Read a file.

        Raises:
            mmdyn.errors.BadDataError: see :meth:`check`; or it can't be read, or has not the
                channels that the model takes.
        """
        self.check(path)
        return self._load(path, Path(path).stem, Path(path))

    def read_resized(self, path: str | Path, hw: tuple[int, int]) -> Tensor:
        """Read a file and resize it to (h, w) = ``hw`` pixels, without regard to its aspect.

        Stretched and not padded: a sparse model leaves padding out, so padded pictures would
        make it look faster than it is on whole ones.

        Returns:
            (C, h, w), uint8 or float32.

        Raises:
            mmdyn.errors.BadDataError: see :meth:`read`.
        """
        image = resized(self.read(path).image, hw)
        # torch 2.1 has no uint16.
        image = image if image.dtype == np.uint8 else image.astype(np.float32)
        return torch.from_numpy(image.reshape(*hw, -1)).permute(2, 0, 1)

    def read_image(self, image: Image.Image) -> Picture:
        """Read a PIL image as a file that holds it: turned or not, and with all bits of a pixel.

        Raises:
            mmdyn.errors.BadDataError: see :meth:`read`.
        """
        name = getattr(image, 'filename', '') or 'array'
        width, height = image.size
        self._check_size(name, width * height / 1e6, f'it has {width}x{height}')
        if image.format == 'EPS':
            raise _unreadable(name, 'it is PostScript')
        try:
            image.load()
            content, kind = _encoded(image, self._reads_tiff_only)
        except Exception as error:  # decoders raise whatever they stumble over
            raise _unreadable(name, one_line(error)) from error
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f'picture.{kind}'
            made.write_bytes(content)
            return self._load(made, 'array', None)

    def take(self, image: np.ndarray, name: str = 'array', path: Path | None = None) -> Picture:
        """Take an array, (h, w, C) or (h, w), for what the loader would have returned.

        Raises:
            mmdyn.errors.BadDataError: if its shape or dtype is another.
        """
        kind_fits = image.dtype.kind in 'uif' if self.keeps_depth else image.dtype == np.uint8
        if getattr(self._loader, 'to_float32', False):
            kind_fits = kind_fits or image.dtype == np.float32
            image = image.astype(np.float32) if kind_fits else image
        image = image.astype(image.dtype.newbyteorder('='), copy=False)  # torch has no other
        if not kind_fits or not self._fits(image):
            channels = 'C' if self.channels is None else self.channels
            kind = '' if self.keeps_depth else ' uint8'
            raise BadDataError(
                f'an array must be what the config reads from a file, (h, w, {channels}){kind}, '
                f'usually with blue first; got {image.shape} {image.dtype}'
            )
        return Picture(name, image, path)

    def pack(self, picture: Picture, number: int = 0) -> dict[str, Any]:
        """Run the steps after the loader; ``number`` becomes the ``img_id``.

        Returns what the host's pipeline packs, ``inputs`` and ``data_samples``.

        Raises:
            mmdyn.errors.BadDataError: naming the file, if a step fails on it.
            ValueError: if the steps pack nothing.
        """
        hw = picture.image.shape[:2]
        known = dict(img_path=None, img_shape=hw, ori_shape=hw, seg_fields=[])
        packed = self._steps({**known, **picture.loaded, 'img': picture.image, 'img_id': number})
        if packed is None or 'inputs' not in packed:
            raise ValueError(
                'the config has no test_dataloader whose pipeline packs pictures for the model: it '
                'must begin with a loader such as LoadImageFromFile and end with PackSegInputs or '
                'PackDetInputs'
            )
        return packed

    def _check_size(self, name: Any, millions: float, found: str) -> None:
        if millions > self.max_pixels:
            raise BadDataError(
                f'{name} has too many pixels, {found}, the limit is {self.max_pixels:g} million: '
                'give a smaller picture, or allow more (--max-pixels, in Python max_pixels=)'
            )

    def _load(self, file: str | Path, name: str, path: Path | None) -> Picture:
        shown = path or name
        try:
            loaded = self._loader(dict(img_path=str(file), img_id=0, seg_fields=[]))
        except Exception as error:  # decoders raise whatever they stumble over
            raise _unreadable(shown, one_line(error)) from error
        image = (loaded or {}).get('img')
        if not isinstance(image, np.ndarray):
            raise _unreadable(shown, f'{type(self._loader).__name__} gives no array')
        if not self._fits(image):
            raise BadDataError(
                f'{shown} is read as an array {image.shape}, and the model takes (h, w, '
                f'{self.channels}) (model.backbone.in_channels): give other pictures, or change '
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
    """A reader as a config's test pipeline describes it.

    Without a test or validation set, pictures are read as mmcv does by default, and can't be
    packed.

    Raises:
        KeyError: if the data set's type is in no registry.
        ValueError: if the pipeline does not begin with a loader, or numbers of channels differ.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    loaders = ('test_dataloader', 'val_dataloader')
    leaves = (leaf for loader in loaders for leaf in typed_leaves(cfg, loader))
    dataset = next((leaf for leaf in leaves if leaf.config.get('pipeline')), None)
    pipeline = dataset.config['pipeline'] if dataset else ()
    steps = [step for step in pipeline if 'Annotation' not in str(step.get('type'))]
    # Of the test set's own pictures; may be more than an ending, '_leftImg8bit.png'.
    suffix = argument(dataset.config, dataset.cls, 'img_suffix') if dataset else None
    own_suffix = [Path(f'name{suffix}').suffix.lower()] if suffix else []
    loader = TRANSFORMS.build(steps[0]) if steps else LoadImageFromFile()
    kind = type(loader)
    if _is_hosts(kind) and not kind.__name__.startswith('Load'):
        raise ValueError(
            f'the test pipeline begins with {kind.__name__}, which reads no picture from a file: '
            'it must begin with a loader such as LoadImageFromFile'
        )
    preprocessor = preprocessor_of(cfg)
    built = class_of(preprocessor.get('type', ''), cfg.get('default_scope'))
    several = len(preprocessor.get('mean') or ()) > 1
    return Reader(
        loader,
        steps[1:],
        # A preprocessor of the user's own may add channels.
        channels=channels_of(cfg) if built is None or _is_hosts(built) else None,
        # mmseg's makes several channels of one, if it has a mean for each.
        grey=several and type_name(preprocessor) == 'SegDataPreProcessor',
        max_pixels=max_pixels,
        suffixes=dict.fromkeys((*SUFFIXES, *own_suffix)),
    )


def _is_hosts(kind: type) -> bool:
    return kind.__module__.split('.')[0] in _HOSTS


def pictures_in(folder: str | Path, reader: Reader, count: int | None = None) -> list[Path]:
    """The first ``count`` (None = all) pictures of a folder, at any depth, without hidden ones.

    Each is read, by way of trial.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no picture, or one that can't be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is no folder: give one with pictures in it')
    files = sorted(
        file
        for file in folder.rglob('[!.]*')
        if file.suffix.lower() in reader.suffixes and not file.is_dir()
    )
    if not files:
        raise ValueError(f'{folder} holds no picture ({", ".join(reader.suffixes)})')
    for file in files[:count]:
        reader.read(file)
    return files[:count]


def _unreadable(name: Any, reason: str) -> BadDataError:
    return BadDataError(
        f'{name} is no picture that can be read: {reason}. Replace it, or leave it out'
    )


def _encoded(image: Image.Image, as_tiff: bool) -> tuple[bytes, str]:
    """A PIL image as a lossless file with its EXIF data, and the file's format."""
    if image.mode == 'I':
        low, high = image.getextrema()
        image = image.convert('I;16') if low >= 0 and high < 1 << 16 else image
    # Pillow would write 16 of 32 bits into a PNG.
    for kind in ('tiff',) if as_tiff or image.mode == 'I' else ('png', 'tiff'):
        stream = io.BytesIO()
        try:
            image.save(stream, kind, exif=image.getexif(), compress_level=1)
        except OSError:  # Pillow's way to say that a format does not hold such pixels
            continue
        return stream.getvalue(), kind
    return _encoded(image.convert('RGB'), as_tiff)
