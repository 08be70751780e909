"""Pretrained weights by timm's model names."""

from __future__ import annotations

import os
import re

import timm
from torch import Tensor

PREFIX = 'timm://'


def timm_model_name(source: str) -> str | None:
    """The timm model that a checkpoint's path stands for.

    Args:
        source: a path, an address, ``timm://NAME``, or a name that timm knows,
            such as ``swin_tiny_patch4_window7_224``, where no such file exists.

    Returns:
        timm's name; None = a path or an address.

    Raises:
        ValueError: if timm knows no model of the name after ``timm://``.
    """
    name = source.removeprefix(PREFIX)
    if name != source:
        if not timm.is_model(name):
            raise ValueError(
                f'{source!r}: timm {timm.__version__} has no model {name!r}; '
                "timm.list_models('*swin*') shows which it has"
            )
        return name
    if not re.fullmatch(r'\w+(\.\w+)?', source) or os.path.exists(source):
        return None
    return source if timm.is_model(source) else None


def timm_weights(name: str) -> dict[str, Tensor]:
    """The pretrained weights of a timm model, fetched by timm's own loader (cached on disk)."""
    return timm.create_model(name, pretrained=True).state_dict()
