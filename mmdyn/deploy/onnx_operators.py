"""Operators that torch 2.10 does not translate to ONNX exactly, or at all. Needs onnxscript.

The number of kept locations is the product of a map's size and the keep ratio in double precision,
as in Python; torch's translation uses single precision, which is off by one at some sizes.
"""

# The exporter evaluates the annotations, so they can't be strings.
import operator

import torch
from onnx import TensorProto, helper
from onnxscript import opset18 as op
from onnxscript.onnx_types import TensorType


def stable_sort(self: TensorType, *, stable: bool = True, dim: int = -1, descending: bool = False):
    """``torch.sort``; ONNX defines that TopK puts the lower index of ties first."""
    length = op.Reshape(op.Gather(op.Shape(self), dim), [-1])
    return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)


def sym_float(self: TensorType):
    """Size of a dimension as a floating-point number."""
    return op.Cast(self, to=TensorProto.DOUBLE)


def mul(self: TensorType, other: TensorType):
    """Product of sizes, or of a size and a number."""
    if isinstance(other, float):
        other = op.Constant(value=helper.make_tensor('', TensorProto.DOUBLE, [], [other]))
    return op.Mul(self, other)


TRANSLATIONS = {
    torch.ops.aten.sort.stable: stable_sort,
    torch.sym_float: sym_float,
    operator.mul: mul,
}
