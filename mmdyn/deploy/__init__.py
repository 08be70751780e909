"""Trained models as graphs that run without mmdyn: torch.export programs and ONNX."""

from mmdyn.deploy.exportable import example_size, exportable, left_out, size_divisor
from mmdyn.deploy.formats import export_onnx, export_torch, trace
from mmdyn.deploy.parity import Parity, check_parity
from mmdyn.deploy.runtime import executed_multiply_adds, load_exported

__all__ = [
    'Parity',
    'check_parity',
    'example_size',
    'executed_multiply_adds',
    'export_onnx',
    'export_torch',
    'exportable',
    'left_out',
    'load_exported',
    'size_divisor',
    'trace',
]
