"""From a trained model to a module that can be traced: images in, tensors out."""

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
        backbone: the model's.
        neck: what follows it, or None.
        head: a segmentor's decode head; None = the maps are the outputs.
        test_cfg: the segmentor's.
        step: the images' sides are multiples of it.
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

        Logits are those of mmseg's ``whole`` mode.
        """
        # As multiples of the step, so that a graph of dynamic size holds their number as a symbol:
        # without it torch.export.load can't compare sizes.
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
        model: a segmentor of mmseg, a detector of mmdet, or a sparse backbone alone, at the
            keep ratios it is to be exported with; left as it is.
        any_size: whether one graph is to serve every size, of sides that are multiples of
            :func:`size_divisor`.

    Returns:
        A module from (B, C, h, w) float32 images, normalised as the model's data
        preprocessor does it, to logits of their size (segmentor), or to the neck's maps
        (detector), or the backbone's.

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
        ValueError: if it has none.
    """
    backbone = getattr(model, 'backbone', model)
    if not isinstance(backbone, DynamicBackbone):
        raise ValueError(
            f'{type(backbone).__name__} is not a sparse backbone, and only those are exported; use '
            'mmdyn.DynamicSwin or another of ours (at keep ratio 1 it is the dense one)'
        )
    return backbone


def head_of(model: nn.Module) -> nn.Module | None:
    """A segmentor's decode head; None for anything else."""
    return getattr(model, 'decode_head', None)


def left_out(model: nn.Module) -> dict[str, str]:
    """What of a detector is not exported, and why; nothing of a segmentor, or a backbone."""
    if head_of(model) is not None or isinstance(model, DynamicBackbone):
        return {}
    return {
        name: f'{type(part).__name__}: proposals, NMS and RoIAlign depend on the objects in an '
        'image, and ONNX lacks their kernels; run it in mmdet on the exported maps'
        for name, part in model.named_children()
        if name not in ('data_preprocessor', 'backbone', 'neck') and not name.endswith('_loss')
    }


def check_exportable(model: nn.Module, any_size: bool = False) -> None:
    """Refuse what can't be exported, before any work.

    Args:
        model, any_size: see :func:`exportable`.

    Raises:
        ValueError: naming the part that can't be exported, and what to do.
    """
    neck, head = getattr(model, 'neck', None), head_of(model)
    parts = {'backbone': backbone_of(model), 'neck': neck, 'decode_head': head}
    for name, part in parts.items():
        if isinstance(part, Deciding) and type(part.policy) is not TopKPolicy:
            raise ValueError(
                f'the {name} decides by {type(part.policy).__name__}, and a graph must know how '
                f'many locations are kept: set model.{name}.policy=None, which is top-k'
            )
    if isinstance(head, nn.ModuleList) or (head is not None and not hasattr(head, 'predict')):
        raise ValueError(
            f'{type(head).__name__} is no single decode head with a predict method (a cascade has '
            'several): export a model with one head, or its backbone alone'
        )
    for part in (neck, head) if any_size else ():
        if isinstance(part, Deciding) or getattr(part, 'align_corners', False):
            raise ValueError(
                f'{type(part).__name__} needs the sizes of maps as numbers (what chooses tiles, '
                'and align_corners=True, do): export it with a fixed size'
            )


def size_divisor(model: nn.Module) -> int:
    """What the sides of the images must be multiples of in a graph of dynamic size, in pixels."""
    backbone = backbone_of(model)
    if isinstance(backbone, StagedBackbone):
        return math.prod(backbone.strides)
    return 2 * backbone.sparse_stride  # necks of a plain backbone halve its map


def example_size(model: nn.Module) -> tuple[int, int]:
    """(h, w) in pixels to trace a graph of dynamic size with.

    Tracing takes a side of one window for a constant: each side of each map has several.
    """
    windows = [getattr(module, 'window_size', 1) for module in backbone_of(model).modules()]
    window = max(7, *(size for size in windows if isinstance(size, int)))
    divisor = size_divisor(model)
    return (2 * window + 1) * divisor, (3 * window + 1) * divisor
