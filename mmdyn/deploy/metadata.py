"""Metadata of graphs, and pictures to test them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmdyn.deploy.exportable import backbone_of, head_of
from mmdyn.engine.model_check import channels_of, preprocessor_of
from mmdyn.engine.picture_reader import Reader
from mmdyn.models.deciding import tile_part
from mmdyn.version import __version__


def metadata_of(
    model: nn.Module, cfg: Config, dataset_meta: Mapping[str, Any], size: Any
) -> dict[str, Any]:
    """Metadata that users of a graph need, as JSON values.

    Normalisation is not part of the graph: images may be normalised already, by a data loader or on
    another device, and resizing and padding happen outside anyway. So its parameters are stored
    here.

    Args:
        model: with weights.
        cfg: its config.
        dataset_meta: metainfo in its checkpoint (``classes``, ``palette``).
        size: of the images, stored as given.
    """
    preprocessor = preprocessor_of(cfg)
    backbone, head = backbone_of(model), head_of(model)
    return {
        'mmdyn': __version__,
        'backbone': type(backbone).__name__,
        'keep_ratios': list(backbone.keep_ratios),
        # Of the head or neck if it chooses tiles.
        'tile_ratio': getattr(tile_part(model), 'tile_ratio', None),
        'images': f'(B, {channels_of(cfg)}, h, w) float32: (pixels - mean) / std',
        'size': size,
        'mean': list(preprocessor.get('mean') or []),
        'std': list(preprocessor.get('std') or []),
        'channels': 'RGB' if preprocessor.get('bgr_to_rgb') else 'BGR',
        'classes': list(dataset_meta.get('classes') or []),
        'palette': [list(map(int, color)) for color in dataset_meta.get('palette') or []],
        # On the probability of a single channel: class 1 above, class 0 below.
        'threshold': getattr(head, 'threshold', None),
    }


def read_images(
    paths: Sequence[str], hw: tuple[int, int], about: Mapping[str, Any], reader: Reader
) -> Tensor:
    """Read pictures, resize and normalise them.

    Args:
        paths: of files.
        hw: (height, width) in pixels after resizing.
        about: from :func:`metadata_of`.
        reader: for the model's config.

    Returns:
        (len(paths), C, *hw) float32.

    Raises:
        FileNotFoundError, ValueError: if one is missing or not a picture.
    """
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f'picture {path} does not exist: check --images')
    images = torch.stack([reader.read_resized(path, hw) for path in paths]).float()
    if about['channels'] == 'RGB' and images.shape[1] == 3:
        images = images.flip(1)
    mean, std = (
        torch.tensor(about[name] or [default]).view(1, -1, 1, 1)
        for name, default in (('mean', 0.0), ('std', 1.0))
    )
    return (images - mean) / std
