"""Operators that torch 2.10 does not translate to ONNX, or not exactly. Needs onnxscript.

How many locations are kept follows from a product of the map's size with the keep ratio, in double
precision as in Python; torch's translation is in single precision, and one off at some sizes.
"""

# The exporter reads the annotations, so they can't be strings.
import operator

import torch
from onnx import TensorProto, helper
from onnxscript import opset18 as op
from onnxscript.onnx_types import TensorType


def stable_sort(self: TensorType, *, stable: bool = True, dim: int = -1, descending: bool = False):
    """``torch.sort``; of equal values, TopK puts the lower index first by its definition."""
    length = op.Reshape(op.Gather(op.Shape(self), dim), [-1])
    return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)


def sym_float(self: TensorType):
    """The size of a dimension as a floating-point number."""
    return op.Cast(self, to=TensorProto.DOUBLE)


def mul(self: TensorType, other: TensorType):
    """A product of sizes, or of one with a number."""
    if isinstance(other, float):
        other = op.Constant(value=helper.make_tensor('', TensorProto.DOUBLE, [], [other]))
    return op.Mul(self, other)


TRANSLATIONS = {
    torch.ops.aten.sort.stable: stable_sort,
    torch.sym_float: sym_float,
    operator.mul: mul,
}
