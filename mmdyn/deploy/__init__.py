"""Export of trained models to graphs that run without mmdyn: torch.export programs and ONNX."""

from mmdyn.deploy.exportable import example_size, exportable, left_out, size_divisor
from mmdyn.deploy.graphs import export_onnx, export_torch, load_exported, trace
from mmdyn.deploy.parity import Parity, check_parity

__all__ = [
    'Parity',
    'check_parity',
    'example_size',
    'export_onnx',
    'export_torch',
    'exportable',
    'left_out',
    'load_exported',
    'size_divisor',
    'trace',
]
