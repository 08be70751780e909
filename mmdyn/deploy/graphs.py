"""Traces exportable modules, writes them as torch.export programs or ONNX, and loads those."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.export import ExportedProgram

from mmdyn.deploy.exportable import ExportableModel
from mmdyn.whole_files import write_bytes

OPSETS = range(18, 23)
"""Supported ONNX opsets: from 23 on the exporter writes an operator that many runtimes lack."""
DEFAULT_OPSET = 20
"""The first opset with GELU as one operator."""
MIN_STEPS = 4
"""Smallest side of a graph of dynamic size, in steps: torch specialises to smaller counts."""
MAX_SIDE = 8192
"""Largest side of such a graph, in pixels."""
SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}
"""File name suffixes by format."""

Run = Callable[[Tensor], tuple[Tensor, ...]]
"""A function from images to outputs."""

_MIN_TORCH = '2.10'


def require_packages(format: str) -> None:
    """Check that the packages for a format are installed.

    Raises:
        ImportError: naming the missing package and how to install it.
    """
    if Version(torch.__version__).release < Version(_MIN_TORCH).release:
        raise ImportError(
            f'export needs torch {_MIN_TORCH} or later, found {torch.__version__}: install the '
            'version in requirements/torch.txt'
        )
    for name in ('onnx', 'onnxscript', 'onnxruntime') if format == 'onnx' else ():
        if find_spec(name) is None:
            raise ImportError(
                f'--format {format} needs {name}: pip install -r requirements/export.txt, '
                "or pip install 'mmdyn[export]'"
            )


def trace(module: ExportableModel, example: Tensor, divisor: int | None = None) -> ExportedProgram:
    """Trace a module.

    Args:
        module: from :func:`mmdyn.deploy.exportable`.
        example: (B, C, h, w) float32, of the graph's size, or, for a dynamic one, of
            :func:`mmdyn.deploy.example_size`.
        divisor: None for a fixed size; else both sides are dynamic multiples of it, from
            ``MIN_STEPS`` of them to ``MAX_SIDE``.

    Raises:
        ValueError: naming the part of the model that can't be traced.
    """
    shapes = None
    if divisor is not None:
        height, width = (
            divisor * torch.export.Dim(name, min=MIN_STEPS, max=MAX_SIDE // divisor)
            for name in ('h', 'w')
        )
        shapes = ({2: height, 3: width},)
    try:
        with torch.no_grad(), without_export_logs():
            return torch.export.export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many types
        what = 'with a fixed size' if divisor is None else 'with dynamic sizes (a fixed one may do)'
        raise ValueError(
            f"{culprit(error)} can't be exported {what}: {str(error).strip().splitlines()[0]}"
        ) from error


@contextlib.contextmanager
def without_export_logs() -> Iterator[None]:
    """Silence the exporter's warnings, which concern torch's and torchvision's code."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript')]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


def culprit(error: BaseException) -> str:
    """Name of the innermost class, outside torch, in whose module an error was raised."""
    names = ['the model']
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get('self')
        if isinstance(module, nn.Module) and not type(module).__module__.startswith('torch.'):
            names.append(type(module).__name__)
    return names[-1]


def export_torch(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a program for ``torch.export.load``.

    Args:
        program: from :func:`trace`.
        path: with suffix ``.pt2``.
        metadata: stored in it as the file ``mmdyn.json``.
    """
    stream = io.BytesIO()  # torch aborts the process if the file can't be written
    torch.export.save(program, stream, extra_files={'mmdyn.json': json.dumps(metadata)})
    write_bytes(path, stream.getbuffer())


def export_onnx(
    program: ExportedProgram, path: Path, metadata: Mapping[str, Any], opset: int = DEFAULT_OPSET
) -> None:
    """Write an ONNX model.

    Args:
        program: from :func:`trace`.
        path: with suffix ``.onnx``.
        metadata: for ``metadata_props``; values other than text are stored as JSON.
        opset: one of ``OPSETS``.
    """
    from mmdyn.deploy.onnx_operators import TRANSLATIONS

    outputs = program.graph_signature.user_outputs
    names = ['logits'] if len(outputs) == 1 else [f'map_{i}' for i in range(len(outputs))]
    with without_export_logs():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            verbose=False,
            input_names=['images'],
            output_names=names,
            custom_translation_table=TRANSLATIONS,
        )
    for node in made.model.graph:
        node.metadata_props.clear()  # stack traces with paths of this machine
    for key, value in metadata.items():
        made.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    # The weights of a large model are written to another file, named in the graph.
    try:
        with TemporaryDirectory(prefix='.', dir=path.parent) as folder:
            made.save(str(Path(folder, path.name)))
            for file in sorted(Path(folder).iterdir(), reverse=True):  # the graph last
                file.replace(path.with_name(file.name))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def load_exported(path: Path, threads: int = 1) -> Run:
    """Load an exported file as a function from images to outputs.

    Args:
        path: ``.onnx``, run by onnxruntime on the CPU, or ``.pt2``, run by torch.
        threads: of onnxruntime; torch has its own setting.
    """
    if path.suffix != '.onnx':
        program = torch.export.load(str(path))
        # Guards of dynamic programs wrongly refuse sizes at which a map is a single window.
        module = program.module(check_guards=not program.range_constraints)
        return torch.no_grad()(lambda images: as_tuple(module(images)))
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=['CPUExecutionProvider'])
    return lambda images: tuple(
        map(torch.from_numpy, session.run(None, {'images': images.numpy()}))
    )


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs of a model as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
