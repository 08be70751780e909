"""What one executed operator costs in multiply-adds, and which operators are free by convention.

Every operator is of one of three kinds: *counted* (matrix products, convolutions,
attention), *free* (element-wise arithmetic, norms, softmax, pooling, resampling, copies,
sorting: left out, as is usual in the field) or *unknown*. Names are
``namespace.operator``; an in-place variant goes by the name of the plain one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal['counted', 'free', 'unknown']

# Matrix products, and which argument is the left factor: its last axis is summed over.
_PRODUCTS = {
    'aten.mm': 'self',
    'aten.bmm': 'self',
    'aten.mv': 'self',
    'aten.dot': 'self',
    'aten.vdot': 'self',
    'aten.addmm': 'mat1',
    'aten._addmm_activation': 'mat1',
    'aten.addmv': 'mat',
    'aten.baddbmm': 'batch1',
    'aten._int_mm': 'self',
    'aten._scaled_mm': 'self',
    'aten.mkldnn_linear': 'self',
    'mkldnn._linear_pointwise': 'X',
    'mkl._mkl_linear': 'X',
}

# Convolutions, and which arguments are the input and the weight.
_CONVOLUTIONS = {
    'aten.convolution': ('input', 'weight'),
    'aten._convolution': ('input', 'weight'),
    'aten._slow_conv2d_forward': ('self', 'weight'),
    'aten._conv_depthwise2d': ('self', 'weight'),
    'aten.mkldnn_convolution': ('self', 'weight'),
    'aten.cudnn_convolution': ('self', 'weight'),
    'aten.cudnn_convolution_relu': ('self', 'weight'),
    'aten.cudnn_convolution_add_relu': ('self', 'weight'),
    'mkldnn._convolution_pointwise': ('X', 'W'),
    'torchvision.deform_conv2d': ('input', 'weight'),
}
_TRANSPOSED = {
    'aten.cudnn_convolution_transpose': ('self', 'weight'),
    'mkldnn._convolution_transpose_pointwise': ('X', 'W'),
}

_ATTENTIONS = {
    'aten._scaled_dot_product_flash_attention',
    'aten._scaled_dot_product_flash_attention_for_cpu',
    'aten._scaled_dot_product_efficient_attention',
    'aten._scaled_dot_product_cudnn_attention',
    'aten._scaled_dot_product_fused_attention_overrideable',
}

# Free ones that are neither element-wise nor views, which torch knows by itself.
_FREE_ATEN = """
    all amax amin aminmax any argmax argmin count_nonzero cumprod cumsum equal
    linalg_vector_norm logcumsumexp logsumexp max mean median min mode nansum norm prod std sum
    var var_mean

    _log_softmax _safe_softmax _softmax log_sigmoid_forward

    _batch_norm_no_update _native_batch_norm_legit _native_batch_norm_legit_no_training
    cudnn_batch_norm native_batch_norm native_dropout native_group_norm native_layer_norm

    _adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d avg_pool3d max_pool2d_with_indices
    max_pool3d_with_indices

    _upsample_bicubic2d_aa _upsample_bilinear2d_aa grid_sampler_2d grid_sampler_3d
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d

    col2im constant_pad_nd im2col pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
    replication_pad1d replication_pad2d

    _index_put_impl _local_scalar_dense _pin_memory _reshape_copy _to_copy _to_dense
    _unsafe_index _unsafe_view as_strided cat channel_shuffle copy detach embedding fill flip
    gather index index_add index_copy index_fill index_put index_reduce index_select masked_fill
    masked_scatter masked_select mkldnn_reorder_conv2d_weight nonzero one_hot put repeat
    repeat_interleave resize roll rot90 scatter scatter_add scatter_reduce set squeeze stack t
    take to_mkldnn transpose tril tril_indices triu triu_indices unsqueeze zero

    _unique2 argsort bincount bucketize histc kthvalue searchsorted sort topk unique_consecutive
    unique_dim

    arange bernoulli cauchy empty empty_like empty_permuted empty_strided exponential eye full
    full_like lift linspace logspace multinomial new_empty new_empty_strided new_full new_ones
    new_zeros normal ones ones_like rand rand_like randint randint_like randn randn_like random
    randperm scalar_tensor uniform zeros zeros_like

    _assert_async _assert_scalar floor_divide is_nonzero isinf
"""

_FREE_ELSEWHERE = """
    mkldnn._reorder_convolution_weight mkldnn._reorder_convolution_transpose_weight
    mkldnn._reorder_linear_weight mkl._mkl_reorder_linear_weight

    torchvision.nms torchvision.ps_roi_align torchvision.ps_roi_pool torchvision.roi_align
    torchvision.roi_pool
"""

# Those of mmcv's compiled ones that only resample, sort or compare boxes. The deformable
# convolutions are here because the matrix products inside them are torch's, seen on their own.
_FREE_MMCV = """
    bbox_overlaps border_align_forward box_iou_quadri box_iou_rotated carafe_forward
    carafe_naive_forward contour_expand deform_conv_forward deform_roi_pool_forward
    masked_col2im_forward masked_im2col_forward min_area_polygons modulated_deform_conv_forward
    ms_deform_attn_forward nms nms_match nms_quadri nms_rotated pixel_group
    points_in_polygons_forward prroi_pool_forward psamask_forward riroi_align_rotated_forward
    roi_align_forward roi_align_rotated_forward roi_pool_forward rotated_feature_align_forward
    softnms
"""

_FREE = {
    *(f'aten.{name}' for name in _FREE_ATEN.split()),
    *(f'mmcv.{name}' for name in _FREE_MMCV.split()),
    *_FREE_ELSEWHERE.split(),
}


def op_name(op: Any) -> str:
    """``'aten.addmm'`` for torch's ``aten::addmm_.out`` and its like."""
    namespace, _, name = op._schema.name.partition('::')
    return plain_name(f'{namespace}.{name}')


def plain_name(name: str) -> str:
    """The name under which an operator stands here, in place or not."""
    return name.rstrip('_')


@cache
def kind_of(op: Any) -> Kind:
    """Of which kind an operator of torch (an ``OpOverload``) is."""
    name = op_name(op)
    if name in _PRODUCTS or name in _CONVOLUTIONS or name in _TRANSPOSED or name in _ATTENTIONS:
        return 'counted'
    aliases = [a.alias_info for a in op._schema.arguments if a.alias_info is not None]
    is_view = any(not alias.is_write for alias in aliases)
    return 'free' if is_view or torch.Tag.pointwise in op.tags else kind_of_named(name)


def kind_of_named(name: str) -> Kind:
    """Of which kind an operator is that only its name is known of: free, or unknown."""
    return 'free' if name in _FREE else 'unknown'


def macs_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Multiply-adds of one call of a counted operator.

    A convolution counts every tap of its kernel, also where that lies on padding.

    Args:
        op: torch's operator (an ``OpOverload``).
        args, kwargs: what it was called with.
        out: what it returned.

    Raises:
        ValueError: if the operator is none of the counted ones.
    """
    name = op_name(op)
    values: dict[str, Any] = {
        a.name: value for a, value in zip(op._schema.arguments, args, strict=False)
    }
    values.update(kwargs)
    if name in _PRODUCTS:
        return out.numel() * values[_PRODUCTS[name]].shape[-1]
    if name in _ATTENTIONS:
        return attention_macs(values['query'], values['key'], values['value'])
    if name not in _CONVOLUTIONS and name not in _TRANSPOSED:
        raise ValueError(f'{name} is none of the counted operators; ask kind_of first')
    image, weight = (values[part] for part in (_CONVOLUTIONS | _TRANSPOSED)[name])
    transposed = name in _TRANSPOSED or values.get('transposed', False)
    return convolution_macs(image if transposed else out, weight)


def attention_macs(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Multiply-adds of softmax(QKᵀ)V: (..., L, D), (..., S, D) and (..., S, E)."""
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def convolution_macs(image: Tensor, weight: Tensor) -> int:
    """Multiply-adds of a convolution, grouped or not.

    Args:
        image: (B, C, ...), the output; of a transposed convolution the input.
        weight: (out, in / groups, ...); of a transposed convolution (in, out / groups, ...).
    """
    return image.numel() * prod(weight.shape[1:])
