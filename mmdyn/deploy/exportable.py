"""Converts a trained model to a module that can be traced, from images to tensors."""

from __future__ import annotations

import copy
import math
from typing import Any

from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from mmdyn.deploy.stand_ins import replace_modules
from mmdyn.models.backbones.base import Batch, DynamicBackbone, StagedBackbone
from mmdyn.models.deciding import Deciding
from mmdyn.sparsity import TopKPolicy


class ExportableModel(nn.Module):
    """Backbone, neck and decode head, with top-k decisions in gathered execution.

    Args:
        backbone: of the model.
        neck: of the model, or None.
        head: a segmentor's decode head; None = the outputs are maps.
        test_cfg: of the segmentor.
        step: divisor of the images' sides.
    """

    def __init__(
        self,
        backbone: DynamicBackbone,
        neck: nn.Module | None = None,
        head: nn.Module | None = None,
        test_cfg: Any = None,
        step: int = 1,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.test_cfg, self.step = test_cfg, step

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, C, h, w) normalised images -> (B, classes, h, w) logits, or (B, C_i, H_i, W_i) maps.

        Logits are as in mmseg's ``whole`` mode.
        """
        # Written as multiples of the step, so that a dynamic graph has their number as a symbol,
        # which torch.export.load needs to compare sizes.
        height, width = (side // self.step * self.step for side in images.shape[2:])
        batch = Batch(images, (height, width))
        maps, _ = self.backbone.forward_maps(batch, self.backbone.policy, 'gathered')
        maps = tuple(maps if self.neck is None else self.neck(tuple(maps)))
        if self.head is None:
            return maps
        metas = [dict(img_shape=images.shape[2:])] * images.shape[0]
        return self.head.predict(maps, metas, self.test_cfg)


def exportable(model: nn.Module, any_size: bool = False) -> ExportableModel:
    """Make a copy of a model for tracing, in evaluation mode.

    Args:
        model: a segmentor of mmseg, a detector of mmdet, or a sparse backbone, with the keep ratios
            to export; not changed.
        any_size: whether the graph will be of dynamic size, with sides that are multiples of
            :func:`size_divisor`.

    Returns:
        A module from (B, C, h, w) float32 images, normalised like the model's data preprocessor
        does, to logits of their size (segmentor), or to the maps of the neck (detector) or
        backbone.

    Raises:
        ValueError: if the model can't be exported, with the reason.
    """
    check_exportable(model, any_size)
    neck, test_cfg = getattr(model, 'neck', None), getattr(model, 'test_cfg', None)
    step = size_divisor(model) if any_size else 1
    made = ExportableModel(backbone_of(model), neck, head_of(model), test_cfg, step)
    made = revert_sync_batchnorm(copy.deepcopy(made)).requires_grad_(False)
    made.backbone.with_cp = False
    replace_modules(made, any_size)
    return made.eval()


def backbone_of(model: nn.Module) -> DynamicBackbone:
    """The sparse backbone of a model, or the model itself.

    Raises:
        ValueError: if there is none.
    """
    backbone = getattr(model, 'backbone', model)
    if not isinstance(backbone, DynamicBackbone):
        raise ValueError(
            f'{type(backbone).__name__} is not a sparse backbone, and only those can be exported; '
            'use mmdyn.DynamicSwin or another mmdyn backbone (dense at keep ratio 1)'
        )
    return backbone


def head_of(model: nn.Module) -> nn.Module | None:
    """A segmentor's decode head; None for others."""
    return getattr(model, 'decode_head', None)


def left_out(model: nn.Module) -> dict[str, str]:
    """Parts of a detector that are not exported, and why; empty for others."""
    if head_of(model) is not None or isinstance(model, DynamicBackbone):
        return {}
    return {
        name: f'{type(part).__name__}: proposals, NMS and RoIAlign depend on the objects in an '
        'image, and ONNX lacks their kernels; run it in mmdet on the exported maps'
        for name, part in model.named_children()
        if name not in ('data_preprocessor', 'backbone', 'neck') and not name.endswith('_loss')
    }


def check_exportable(model: nn.Module, any_size: bool = False) -> None:
    """Check that a model can be exported.

    Args:
        model, any_size: see :func:`exportable`.

    Raises:
        ValueError: naming the part that can't be exported and the remedy.
    """
    neck, head = getattr(model, 'neck', None), head_of(model)
    parts = {'backbone': backbone_of(model), 'neck': neck, 'decode_head': head}
    for name, part in parts.items():
        if isinstance(part, Deciding) and type(part.policy) is not TopKPolicy:
            raise ValueError(
                f'the {name} uses {type(part.policy).__name__}, but a graph needs a fixed number '
                f'of kept locations: set model.{name}.policy=None, which is top-k'
            )
    if isinstance(head, nn.ModuleList) or (head is not None and not hasattr(head, 'predict')):
        raise ValueError(
            f'{type(head).__name__} is not a single decode head with a predict method (a cascade '
            'has several): export a model with one head, or its backbone only'
        )
    modules = parts['backbone'].modules() if any_size else ()
    if not all(getattr(module, 'shift_one_window', True) for module in modules):
        raise ValueError(
            'whether a map is a single window depends on its size: with '
            'model.backbone.shift_one_window=False export it with a fixed size'
        )
    for part in (neck, head) if any_size else ():
        if isinstance(part, Deciding) or getattr(part, 'align_corners', False):
            raise ValueError(
                f'{type(part).__name__} needs the sizes of maps as numbers (as does everything '
                'that chooses tiles or has align_corners=True): export it with a fixed size'
            )


def size_divisor(model: nn.Module) -> int:
    """Divisor of the images' sides in a graph of dynamic size, in pixels."""
    backbone = backbone_of(model)
    if isinstance(backbone, StagedBackbone):
        return math.prod(backbone.strides)
    return 2 * backbone.sparse_stride  # necks of a plain backbone halve its map


def example_size(model: nn.Module) -> tuple[int, int]:
    """(h, w) in pixels for tracing a graph of dynamic size.

    Every map has several windows per side, as tracing would make the side of one a constant.
    """
    windows = [getattr(module, 'window_size', 1) for module in backbone_of(model).modules()]
    window = max(7, *(size for size in windows if isinstance(size, int)))
    divisor = size_divisor(model)
    return (2 * window + 1) * divisor, (3 * window + 1) * divisor
