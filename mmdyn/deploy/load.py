"""From command-line values to a model with its weights, and to what is kept beside its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmdyn.converters.formats import dataset_meta_of, weights_of
from mmdyn.converters.reading import read_checkpoint
from mmdyn.deploy.exportable import backbone_of, head_of
from mmdyn.engine.config import load_config, set_keep_ratios
from mmdyn.engine.model_check import channels_of
from mmdyn.engine.reading import Reader
from mmdyn.guard import checkpoints_as_data
from mmdyn.models.deciding import KEEP_EVERYTHING, lacking, missing_in_use
from mmdyn.version import __version__


def load_model(
    config: str,
    checkpoint: str,
    *,
    keep_ratio: float | None = None,
    keep_ratios: Sequence[float] | None = None,
    cfg_options: dict[str, Any] | None = None,
    trust_checkpoint: bool = False,
) -> tuple[nn.Module, Config, dict[str, Any]]:
    """Build a config's model with a checkpoint's weights; needs no data.

    Args:
        config: a config file, or a packaged one as ``mmdyn::NAME.py``.
        checkpoint: a local file. At ratio 1 everywhere it may be a dense model's.
        keep_ratio: the first predictor's; the others fall from it. None, with
            ``keep_ratios`` None too: the config's.
        keep_ratios: the keep ratio of each predictor.
        cfg_options: overrides, keys with dots.
        trust_checkpoint: read a file that holds more than data.

    Returns:
        The model in evaluation mode, the config, and what the checkpoint says of the data
        set it was trained on (``classes``, ``palette``).

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if something given does not fit.
    """
    cfg = load_config(config, cfg_options)
    content = read_checkpoint(checkpoint, trust_checkpoint)
    try:
        state, _ = weights_of(content)
    except ValueError as error:
        raise ValueError(f'checkpoint {checkpoint}: {error}') from error
    # Here and not at the top: it imports the hosts' models, seconds that a check should not take.
    from mmdyn.models.adapters import use_adapter

    use_adapter(cfg, training=False)
    set_keep_ratios(cfg, keep_ratio, None if keep_ratios is None else list(keep_ratios))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with checkpoints_as_data(trust_checkpoint):
        model = MODELS.build(cfg.model)
    load_weights(model, state, checkpoint)
    return model.eval(), cfg, dataset_meta_of(content)


def load_weights(model: nn.Module, state: dict[str, Tensor], checkpoint: str) -> None:
    """Load all weights that a model needs.

    Raises:
        ValueError: if the checkpoint lacks some, or one has another shape.
    """
    try:
        absent = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:  # torch's way to say that shapes differ
        raise ValueError(
            f'checkpoint {checkpoint} is of another model than the config: '
            f'{" ".join(str(error).split())}'
        ) from error
    others, untrained = missing_in_use(model, lacking(model, state, absent))
    if untrained:
        raise ValueError(
            f'checkpoint {checkpoint} lacks {len(untrained)} parameters of predictors and fast '
            f'paths, e.g. {untrained[0]!r}: train the sparse model first, or export the dense one, '
            f'--dense (which is {KEEP_EVERYTHING})'
        )
    if others:
        raise ValueError(
            f'checkpoint {checkpoint} lacks {len(others)} of the parameters, e.g. {others[0]!r}: '
            "give the config it was trained with, and a whole model's checkpoint"
        )


def describe(
    model: nn.Module, cfg: Config, dataset_meta: Mapping[str, Any], size: Any
) -> dict[str, Any]:
    """What a user of the graph needs beside it, as values that JSON has.

    The graph takes normalised images, as the data preprocessor makes them, and not files'
    bytes: resizing and padding would stay outside in any case, and what is normalised once
    already, in a data loader or on another device, must not be so again. So the numbers go
    beside it.

    Args:
        model: with its weights.
        cfg: its config.
        dataset_meta: see :func:`load_model`.
        size: of the images, put down as it is.
    """
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    backbone, head = backbone_of(model), head_of(model)
    return {
        'mmdyn': __version__,
        'backbone': type(backbone).__name__,
        'keep_ratios': list(backbone.keep_ratios),
        'images': f'(B, {channels_of(cfg)}, h, w) float32: (pixels - mean) / std',
        'size': size,
        'mean': list(preprocessor.get('mean') or []),
        'std': list(preprocessor.get('std') or []),
        'channels': 'RGB' if preprocessor.get('bgr_to_rgb') else 'BGR',
        'classes': list(dataset_meta.get('classes') or []),
        'palette': [list(map(int, color)) for color in dataset_meta.get('palette') or []],
        # Of a single channel's probability: class 1 above it, class 0 below.
        'threshold': getattr(head, 'threshold', None),
    }


def read_images(
    paths: Sequence[str], hw: tuple[int, int], about: Mapping[str, Any], reader: Reader
) -> Tensor:
    """Read pictures, resize and normalise them.

    Args:
        paths: of files.
        hw: (height, width) in pixels they are resized to.
        about: as :func:`describe` gives it.
        reader: of the model's config.

    Returns:
        (len(paths), C, *hw) float32.

    Raises:
        FileNotFoundError, ValueError: if one is missing or no picture.
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
