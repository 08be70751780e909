"""From a trained model to a module that can be traced: images in, tensors out."""

from __future__ import annotations

import copy
import math

from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from mmdyn.deploy.decisions import RankedPolicy
from mmdyn.deploy.stand_ins import replace_modules
from mmdyn.models.backbones.base import Batch, DynamicBackbone, StagedBackbone
from mmdyn.models.deciding import Deciding
from mmdyn.sparsity import TopKPolicy

_NOT_TRACED = (
    'belongs to what finds as many objects as an image holds (proposals, NMS, RoIAlign), with '
    'kernels of mmcv that ONNX has none of: run it on the exported maps, in mmdet'
)


class ExportableModel(nn.Module):
    """Backbone and neck, with top-k decisions in gathered execution.

    Args:
        backbone: with stand-ins for tracing.
        neck: what follows it, or None.
    """

    def __init__(self, backbone: DynamicBackbone, neck: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, h, w) normalised images -> the maps after the neck, (B, C_i, H_i, W_i) each."""
        maps, _ = self.backbone.forward_maps(Batch(images), RankedPolicy(), 'gathered')
        return tuple(maps if self.neck is None else self.neck(tuple(maps)))


class ExportableSegmentor(ExportableModel):
    """A whole segmentor, as mmseg's ``whole`` mode runs it.

    Args:
        backbone: with stand-ins for tracing.
        neck: what follows it, or None.
        head: the decode head.
        test_cfg: the segmentor's.
    """

    def __init__(
        self, backbone: DynamicBackbone, neck: nn.Module | None, head: nn.Module, test_cfg: dict
    ) -> None:
        super().__init__(backbone, neck)
        self.head = head
        self.test_cfg = test_cfg

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, h, w) normalised images -> (B, classes, h, w) logits."""
        metas = [dict(img_shape=images.shape[2:])] * images.shape[0]
        return self.head.predict(super().forward(images), metas, self.test_cfg)


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
        ValueError: if the model can't be exported; it names what stands against it.
    """
    backbone = backbone_of(model)
    check_exportable(model, any_size)
    named = dict(backbone=backbone, neck=getattr(model, 'neck', None), head=head_of(model))
    parts = nn.ModuleDict({name: part for name, part in named.items() if part is not None})
    parts = revert_sync_batchnorm(copy.deepcopy(parts)).requires_grad_(False)
    backbone, neck, head = (parts[name] if name in parts else None for name in named)
    backbone.with_cp = False
    replace_modules(parts, backbone, any_size)
    if head is None:
        return ExportableModel(backbone, neck).eval()
    return ExportableSegmentor(backbone, neck, head, model.test_cfg).eval()


def backbone_of(model: nn.Module) -> DynamicBackbone:
    """The sparse backbone of a model, or the model itself.

    Raises:
        ValueError: if it has none.
    """
    backbone = getattr(model, 'backbone', model)
    if not isinstance(backbone, DynamicBackbone):
        raise ValueError(
            f'{type(backbone).__name__} is no sparse backbone, and only those are exported; use '
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
        name: f'{type(part).__name__} {_NOT_TRACED}'
        for name, part in model.named_children()
        if name not in ('data_preprocessor', 'backbone', 'neck') and not name.endswith('_loss')
    }


def check_exportable(model: nn.Module, any_size: bool = False) -> None:
    """Refuse what can't be exported, before any work.

    Args:
        model: see :func:`exportable`.
        any_size: see there.

    Raises:
        ValueError: naming what stands against it, and the remedy.
    """
    policy = backbone_of(model).policy
    if type(policy) is not TopKPolicy:
        raise ValueError(
            f'the backbone decides by {type(policy).__name__}, and a graph needs to know how many '
            'locations are kept: set model.backbone.policy=None, which is top-k'
        )
    neck = getattr(model, 'neck', None)
    if isinstance(neck, Deciding):
        raise ValueError(
            f'{type(neck).__name__} cuts out the tiles it chooses, and a graph needs to know where '
            'they lie: export a model with a stock neck, or its backbone alone'
        )
    head = head_of(model)
    if isinstance(head, nn.ModuleList) or (head is not None and not hasattr(head, 'predict')):
        raise ValueError(
            f'{type(head).__name__} is no single decode head with a predict method (a cascade has '
            'several): export a model with one head, or its backbone alone'
        )
    if isinstance(head, Deciding) and 0 < head.tile_ratio < 1:
        raise ValueError(
            f'{type(head).__name__} with tile_ratio={head.tile_ratio} cuts out the tiles it '
            'chooses, and a graph needs to know where they lie: set model.decode_head.tile_ratio '
            'to 1 (the dense head) or 0 (the coarse pass alone) in the config'
        )
    if any_size and isinstance(head, Deciding):
        raise ValueError(
            f'{type(head).__name__} takes the sizes of maps as numbers: export it with a fixed size'
        )
    if any_size and getattr(head, 'align_corners', False):
        raise ValueError(
            f"{type(head).__name__} has align_corners=True, for which mmseg's resize needs the "
            'sizes as numbers: export it with a fixed size'
        )


def size_divisor(model: nn.Module) -> int:
    """What the sides of the images must be multiples of in a graph of dynamic size, in pixels."""
    backbone = backbone_of(model)
    if isinstance(backbone, StagedBackbone):
        return math.prod(backbone.strides)
    # Necks of a plain backbone halve its map.
    return 2 * backbone.sparse_stride


def example_size(model: nn.Module) -> tuple[int, int]:
    """(h, w) in pixels to trace a graph of dynamic size with.

    Tracing takes a side of one window for a constant: each side of each map has several.
    """
    windows = [getattr(module, 'window_size', 1) for module in backbone_of(model).modules()]
    window = max(7, *(size for size in windows if isinstance(size, int)))
    divisor = size_divisor(model)
    return (2 * window + 1) * divisor, (3 * window + 1) * divisor
