"""What mmseg's UperNet gains without training, measured on one photo."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

from mmdyn.analysis.evaluating import Advance
from mmdyn.analysis.images import HostBatch, as_picture, make_batches
from mmdyn.analysis.measuring import Latency, measure_latency, speedup
from mmdyn.analysis.stock import build_stock_model
from mmdyn.engine.config import load_config
from mmdyn.engine.loading import LoadedModel, build_model
from mmdyn.models.prepared import prepare_for_inference

CONFIG = 'mmdyn::upernet_dynhead_dynswin_ade20k.py'
"""UperNet Swin-T, with a sparse backbone and a head that works on an eighth of the tiles."""
_STOCK, _PREPARED, _SPARSE = (
    "mmseg's UperNet Swin-T",
    'the same model, prepared',
    'sparse, prepared: to be fine-tuned',
)


class Compared(NamedTuple):
    """A row of the comparison.

    Attributes:
        name: the model.
        latency: of a call, from the normalised image to the label map, in ms.
        speedup: over the first row, the median of the rounds' ratios.
        same_labels: share of pixels labelled as in the first row; None if the model has to be
            fine-tuned first.
    """

    name: str
    latency: Latency
    speedup: float
    same_labels: float | None


def photo(side: int) -> Tensor:
    """A square photo (3, side, side) uint8, BGR: Grace Hopper, public domain, from matplotlib."""
    with get_sample_data('grace_hopper.jpg') as file:
        image = Image.open(file).convert('RGB')
    width = min(image.size)
    square = image.crop((0, 0, width, width)).resize((side, side))
    return as_picture(np.array(square))


def compare(side: int = 512, rounds: int = 5, advance: Advance = lambda: None) -> list[Compared]:
    """Time mmseg's UperNet Swin-T, the same prepared, and a sparse one, all with random weights.

    Random weights take as long as trained ones, and the first two models share theirs. Preparing
    keeps freed memory for the whole process, so mmseg's model is faster here than by itself.

    Args:
        side: of the photo, in pixels.
        rounds: measured calls of each model, interleaved, after one that isn't counted.
        advance: called after every call.
    """
    cfg: Config = load_config(CONFIG)
    loaded = LoadedModel('sparse', cfg, build_model(cfg).eval(), 'random weights', ())
    image = photo(side)
    both, _ = make_batches(loaded, [image, image.flip(-1)], 2)
    _use_statistics(loaded.model, both)
    (batch,) = make_batches(loaded, [image], 1)
    stock = build_stock_model(loaded)
    models = {
        _STOCK: stock,
        _PREPARED: prepare_for_inference(copy.deepcopy(stock)),
        _SPARSE: prepare_for_inference(loaded.model),
    }
    runs: dict[str, Callable] = {name: partial(_labels, model) for name, model in models.items()}
    times = measure_latency(runs, [batch], rounds=rounds, warmup=1, on_call=advance)
    with torch.inference_mode():
        labels = {name: runs[name](batch) for name in (_STOCK, _PREPARED)}
    same = {name: float((one == labels[_STOCK]).float().mean()) for name, one in labels.items()}
    return [
        Compared(name, time, speedup(time, times[_STOCK]).median, same.get(name))
        for name, time in times.items()
    ]


def _labels(model: nn.Module, batch: HostBatch) -> Tensor:
    """(1, side, side) class indices."""
    return model.encode_decode(batch.inputs, list(batch.metainfos)).argmax(1)


def _use_statistics(model: nn.Module, batch: HostBatch) -> None:
    """Give BatchNorm the statistics of these images.

    Without, random weights give all pixels the same label.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        _labels(model, batch)
    model.eval()
