"""Running what was exported, and counting what it executes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mmdyn.analysis.counting import count_macs

Run = Callable[[Tensor], tuple[Tensor, ...]]


def load_exported(path: Path, threads: int = 1) -> Run:
    """Load an exported file as a function from images to outputs.

    Args:
        path: ``.onnx``, run by onnxruntime on the CPU, or ``.pt2``, run by torch.
        threads: of onnxruntime; torch has its own setting.
    """
    if path.suffix == '.onnx':
        session = _session(path, threads)
        return lambda images: tuple(
            map(torch.from_numpy, session.run(None, {'images': images.numpy()}))
        )
    module = torch.export.load(str(path)).module()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return as_tuple(module(images))

    return run


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A model's outputs as a tuple, a single one too."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def executed_multiply_adds(path: Path, images: Tensor) -> int:
    """Multiply-adds of the matrix products and convolutions that a file's graph executes.

    Args:
        path: ``.onnx`` or ``.pt2``.
        images: (B, C, h, w), what it is run on; the count is for the whole batch.
    """
    if path.suffix != '.onnx':
        run = load_exported(path)
        return count_macs(lambda: run(images))
    import onnxruntime

    with TemporaryDirectory() as folder:
        # As written: what the runtime fuses has other names.
        session = _session(
            path,
            enable_profiling=True,
            profile_file_prefix=str(Path(folder) / 'profile'),
            graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        )
        session.run(None, {'images': images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = (event['args'] for event in events if event['name'].endswith('_kernel_time'))
    return sum(_multiply_adds(node) for node in nodes)


def _session(path: Path, threads: int = 1, **options: Any) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    for name, value in options.items():
        setattr(settings, name, value)
    if settings.enable_profiling:  # packed weights have no shape in the profile
        settings.add_session_config_entry('session.disable_prepacking', '1')
    return onnxruntime.InferenceSession(str(path), settings, providers=['CPUExecutionProvider'])


def _multiply_adds(node: dict[str, Any]) -> int:
    """Of one executed node, from the shapes in the runtime's profile."""
    if node['op_name'] not in ('MatMul', 'Gemm', 'Conv', 'ConvTranspose'):
        return 0
    left, right = (next(iter(entry.values())) for entry in node['input_type_shape'][:2])
    (out,) = (next(iter(entry.values())) for entry in node['output_type_shape'])
    if node['op_name'] == 'MatMul':
        return math.prod(out) * left[-1]
    if node['op_name'] == 'Gemm':  # either side may be transposed
        return math.prod(left) * out[-1]
    return math.prod(out if node['op_name'] == 'Conv' else left) * math.prod(right[1:])
