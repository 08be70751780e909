"""Counts the multiply-adds that a model executes, by operator and part of the model.

Operators are *counted* (matrix products, convolutions, attention), *free* (element-wise arithmetic,
norms, softmax, pooling, resampling, copies, sorting: excluded by convention) or *unknown*. Names
    are
``namespace.operator``; in-place variants have the name of the plain operator.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, wraps
from math import prod
from types import FrameType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmdyn.sparsity import ScorePredictor

Kind = Literal['counted', 'free', 'unknown']

OTHER = 'other'
PREDICTORS = 'predictors'

# mmcv's compiled operators are plain functions of this module, not seen by torch's dispatcher.
_MMCV_OPS = 'mmcv._ext'


def _product(left: str) -> Callable[[dict[str, Any], Any], int]:
    """Cost of a matrix product, which sums over the last axis of its left factor."""
    return lambda values, out: out.numel() * values[left].shape[-1]


def _convolution(
    image: str, weight: str, transposed: bool = False
) -> Callable[[dict[str, Any], Any], int]:
    """Cost of a convolution; taps of the kernel on padding count as well."""

    def macs(values: dict[str, Any], out: Tensor) -> int:
        # Weights are (out, in / groups, ...), or (in, out / groups, ...) if transposed.
        maps = values[image] if transposed or values.get('transposed') else out
        return maps.numel() * prod(values[weight].shape[1:])

    return macs


def _attention(values: dict[str, Any], out: Any) -> int:
    """Cost of softmax(QKᵀ)V: (..., L, D), (..., S, D) and (..., S, E)."""
    query, key, value = values['query'], values['key'], values['value']
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


# Multiply-adds of a call, from its arguments by name and its output, by operator.
_COSTS: dict[str, Callable[[dict[str, Any], Any], int]] = {
    name: cost
    for cost, names in (
        (_product('self'), 'aten.mm aten.bmm aten.mv aten.dot aten.vdot aten._int_mm'),
        (_product('self'), 'aten._scaled_mm aten.mkldnn_linear'),
        (_product('mat1'), 'aten.addmm aten._addmm_activation'),
        (_product('mat'), 'aten.addmv'),
        (_product('batch1'), 'aten.baddbmm'),
        (_product('X'), 'mkldnn._linear_pointwise mkl._mkl_linear quantized.linear_dynamic'),
        (_convolution('input', 'weight'), 'aten.convolution aten._convolution'),
        (_convolution('input', 'weight'), 'torchvision.deform_conv2d'),
        (_convolution('self', 'weight'), 'aten._slow_conv2d_forward aten._conv_depthwise2d'),
        (_convolution('self', 'weight'), 'aten.mkldnn_convolution aten.cudnn_convolution'),
        (_convolution('self', 'weight'), 'aten.cudnn_convolution_relu'),
        (_convolution('self', 'weight'), 'aten.cudnn_convolution_add_relu'),
        (_convolution('X', 'W'), 'mkldnn._convolution_pointwise'),
        (_convolution('self', 'weight', transposed=True), 'aten.cudnn_convolution_transpose'),
        (_convolution('X', 'W', transposed=True), 'mkldnn._convolution_transpose_pointwise'),
        (_attention, 'aten._scaled_dot_product_flash_attention'),
        (_attention, 'aten._scaled_dot_product_flash_attention_for_cpu'),
        (_attention, 'aten._scaled_dot_product_efficient_attention'),
        (_attention, 'aten._scaled_dot_product_cudnn_attention'),
        (_attention, 'aten._scaled_dot_product_fused_attention_overrideable'),
    )
    for name in names.split()
}

# Free operators besides element-wise ones and views, which torch marks; * is a wildcard. Of mmcv's,
# those that resample, sort or compare boxes, and deformable convolutions, whose matrix products are
# seen separately as torch's.
_FREE = {
    'aten': """
        all amax amin aminmax any arg* count_nonzero cumprod cumsum equal linalg_vector_norm
        log*sumexp max mean median min mode nansum norm prod std sum var var_mean

        *_softmax log_sigmoid_forward _batch_norm* _native_batch_norm* cudnn_batch_norm
        native_batch_norm native_dropout native_group_norm native_layer_norm

        *_pool2d *_pool3d *_with_indices _upsample_* upsample_* grid_sampler_2d grid_sampler_3d
        col2im im2col constant_pad_nd pixel_*shuffle channel_shuffle *_pad1d *_pad2d

        _index_put_impl index* _unsafe_index gather scatter* masked_* put take* nonzero one_hot
        _local_scalar_dense _pin_memory _reshape_copy _to_* _unsafe_view as_strided cat copy detach
        embedding fill flip mkldnn_reorder_conv2d_weight repeat* resize roll rot90 set squeeze stack
        t to_mkldnn transpose tril* triu* unsqueeze zero

        _unique2 bincount bucketize histc kthvalue searchsorted sort topk unique_*

        arange bernoulli cauchy empty* exponential eye full* lift linspace logspace multinomial
        new_* normal ones* rand* scalar_tensor uniform zeros*

        _assert_* floor_divide is_nonzero isinf
    """,
    'mkldnn': '_reorder_*_weight',
    'mkl': '_mkl_reorder_linear_weight',
    'torchvision': 'nms ps_roi_align ps_roi_pool roi_align roi_pool',
    'mmcv': """
        bbox_overlaps border_align_forward box_iou_* carafe_* contour_expand deform_conv_forward
        deform_roi_pool_forward masked_*2*_forward min_area_polygons modulated_deform_conv_forward
        ms_deform_attn_forward nms nms_* pixel_group points_in_polygons_forward
        prroi_pool_forward psamask_forward *roi_align*_forward roi_pool_forward
        rotated_feature_align_forward softnms
    """,
}


def _is_free(name: str) -> bool:
    namespace, _, own = name.partition('.')
    return any(fnmatchcase(own, known) for known in _FREE.get(namespace, '').split())


def _plain_name(name: str) -> str:
    return name.rstrip('_')


def op_name(op: Any) -> str:
    """Canonical name of an operator: ``'aten.addmm'`` for torch's ``aten::addmm_.out``."""
    namespace, _, name = op._schema.name.partition('::')
    return _plain_name(f'{namespace}.{name}')


@cache
def kind_of(op: Any) -> Kind:
    """Kind of a torch operator (an ``OpOverload``)."""
    name = op_name(op)
    if name in _COSTS:
        return 'counted'
    aliases = [a.alias_info for a in op._schema.arguments if a.alias_info is not None]
    is_view = any(not alias.is_write for alias in aliases)
    return 'free' if is_view or torch.Tag.pointwise in op.tags or _is_free(name) else 'unknown'


def _macs_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    names = (argument.name for argument in op._schema.arguments)
    return _COSTS[op_name(op)]({**dict(zip(names, args, strict=False)), **kwargs}, out)


@dataclass(frozen=True, eq=False)
class MacCount:
    """Executed operators.

    Attributes:
        macs: multiply-adds by (group, operator).
        free: number of calls of free operators, by name.
        unknown: number of calls of operators of unknown cost, by name; if there are any, the count
            is a lower bound.
    """

    macs: Counter[tuple[str, str]] = field(default_factory=Counter)
    free: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return self.macs.total()

    def by_group(self) -> Counter[str]:
        """Multiply-adds of each part of the model."""
        return self._summed(0)

    def by_op(self) -> Counter[str]:
        """Multiply-adds of each operator."""
        return self._summed(1)

    def without(self, group: str) -> MacCount:
        """A copy without one group's multiply-adds."""
        macs = Counter({key: macs for key, macs in self.macs.items() if key[0] != group})
        return replace(self, macs=macs)

    def __add__(self, other: MacCount) -> MacCount:
        return MacCount(
            self.macs + other.macs, self.free + other.free, self.unknown + other.unknown
        )

    def _summed(self, axis: int) -> Counter[str]:
        summed: Counter[str] = Counter()
        for key, macs in self.macs.items():
            summed[key[axis]] += macs
        return summed


def module_groups(model: nn.Module) -> dict[int, str]:
    """Part of the model that each module belongs to, by the ``id`` of the module.

    Parts are the children of the model (``backbone``, ``neck``, ``decode_head``, ``rpn_head`` ...),
    those of its ``roi_head`` (``bbox_head``, ``mask_head``), and the score predictors. A model
    without a ``backbone`` is treated as a backbone.
    """
    root = OTHER if hasattr(model, 'backbone') else 'backbone'
    groups = {}
    for name, module in model.named_modules():
        first, _, rest = name.partition('.')
        if root != OTHER or not first:
            group = root
        else:
            group = rest.partition('.')[0] if first == 'roi_head' and rest else first
        groups[id(module)] = group
    for predictor in model.modules():
        if isinstance(predictor, ScorePredictor):
            groups |= {id(part): PREDICTORS for part in predictor.modules()}
    return groups


class _CountingMode(TorchDispatchMode):
    """Intercepts every operator that torch runs."""

    def __init__(self, groups: dict[int, str]) -> None:
        super().__init__()
        self.groups = groups
        self.count = MacCount()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, name, kind = kwargs or {}, op_name(op), kind_of(op)
        if kind == 'unknown':
            # In inference mode composite operators arrive undecomposed.
            with self:
                out = op.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = op(*args, **kwargs)
        if kind == 'counted':
            self.count.macs[self.group(), name] += _macs_of(op, args, kwargs, out)
        else:
            (self.count.free if kind == 'free' else self.count.unknown)[name] += 1
        return out

    def group(self) -> str:
        """The part of the model that is running.

        Determined from the call stack, innermost module first: hooks would miss calls that bypass a
        module's ``__call__`` (``head.predict``, ``backbone.forward_sparse``).
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if self.groups and code.co_argcount:
                first = frame.f_locals.get(code.co_varnames[0])
                if id(first) in self.groups:
                    return self.groups[id(first)]
            frame = frame.f_back
        return OTHER


@contextmanager
def _watch(module: ModuleType | None, count: MacCount) -> Iterator[None]:
    """Record every call of mmcv's compiled operators."""

    def noting(name: str, function: Callable) -> Callable:
        calls = count.free if _is_free(name) else count.unknown

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    functions = {k: v for k, v in vars(module).items() if callable(v)} if module else {}
    try:
        for name, function in functions.items():
            setattr(module, name, noting(_plain_name(f'mmcv.{name}'), function))
        yield
    finally:
        for name, function in functions.items():
            setattr(module, name, function)


def count_executed(run: Callable[[], Any], model: nn.Module | None = None) -> tuple[MacCount, Any]:
    """Count what ``run()`` executes.

    Matrix products, convolutions and attention count, with the shapes that they are executed with:
    a sparse path counts for the locations it gathers. Norms, activations, softmax, copies,
    resampling and the like are excluded by convention. Covers torch's operators, including those
    called by compiled extensions, and mmcv's; not the internals of other extensions or of compiled
    graphs.

    Args:
        run: called once, without gradients.
        model: to group multiply-adds by its parts (backbone, predictors, neck, heads); None = all
            in the group ``'other'``.

    Returns:
        The count, and the result of ``run``.
    """
    mode = _CountingMode({} if model is None else module_groups(model))
    with torch.no_grad(), _watch(sys.modules.get(_MMCV_OPS), mode.count), mode:
        out = run()
    return mode.count, out


def count_macs(run: Callable[[], Any]) -> int:
    """Multiply-adds of ``run()``, which is called once without gradients.

    See :func:`count_executed` for what is counted. A multiply-add is two floating-point operations,
    though papers call multiply-adds FLOPs. Warns about operators of unknown cost.
    """
    count, _ = count_executed(run)
    if count.unknown:
        warnings.warn(
            f'multiply-adds are a lower bound: mmdyn.analysis.counting does not know the cost of '
            f'{", ".join(sorted(count.unknown))}',
            stacklevel=2,
        )
    return count.total
