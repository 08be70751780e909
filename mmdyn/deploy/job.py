"""One export from beginning to end: checked, written, compared, timed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmdyn.analysis.measuring import measure_latency
from mmdyn.deploy.exportable import (
    backbone_of,
    check_exportable,
    example_size,
    exportable,
    size_divisor,
)
from mmdyn.deploy.formats import (
    DEFAULT_OPSET,
    MAX_SIDE,
    MIN_STEPS,
    check_opset,
    export_onnx,
    export_torch,
    require_packages,
    trace,
)
from mmdyn.deploy.parity import Parity, check_parity, made_up_images, reference_of
from mmdyn.deploy.runtime import executed_multiply_adds, load_exported

SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}


@dataclass(frozen=True)
class Job:
    """What is to be exported, and how.

    Attributes:
        format: ``'onnx'`` or ``'torch-export'``.
        hw: (height, width) in pixels that the graph is for, or, if it is dynamic, that it
            is compared and timed at.
        batch: images at a time.
        dynamic: whether the graph takes any size, of sides that are multiples of
            :func:`mmdyn.deploy.size_divisor`.
        opset: of ONNX.
        channels: of an image.
    """

    format: str
    hw: tuple[int, int]
    batch: int = 1
    dynamic: bool = False
    opset: int = DEFAULT_OPSET
    channels: int = 3


def check_job(model: nn.Module, job: Job) -> None:
    """Refuse what can't be done, before any work.

    Raises:
        ImportError: if a package is missing.
        ValueError: naming what is wrong, and the remedy.
    """
    require_packages(job.format)
    check_opset(job.opset)
    if job.batch < 1:
        raise ValueError(f'the batch size must be at least 1, got {job.batch}')
    if min(job.hw) < 1:
        raise ValueError(f'the size must be positive, got {job.hw[0]}x{job.hw[1]}')
    check_exportable(model, job.dynamic)
    if job.dynamic:
        divisor = size_divisor(model)
        least, most = MIN_STEPS * divisor, MAX_SIDE // divisor * divisor
        near = [min(max(-(-side // divisor) * divisor, least), most) for side in job.hw]
        if near != list(job.hw):
            raise ValueError(
                f'a graph of dynamic size takes sides that are multiples of {divisor}, from '
                f'{least} to {most}, got {job.hw[0]}x{job.hw[1]}: give --shape {near[0]} '
                f'{near[1]}, or a fixed size'
            )
    reference_of(model)(torch.zeros(1, job.channels, *job.hw))  # says so where images are too small


def write(model: nn.Module, job: Job, path: Path, about: dict[str, Any]) -> None:
    """Trace a model and write its graph.

    Args:
        model: with its weights, at the keep ratios that the graph gets.
        job: checked.
        path: where to.
        about: kept beside the graph.
    """
    divisor = size_divisor(model) if job.dynamic else None
    hw = example_size(model) if job.dynamic else job.hw
    example = torch.zeros(job.batch, job.channels, *hw)
    program = trace(exportable(model, job.dynamic), example, divisor)
    if job.format == 'onnx':
        export_onnx(program, path, about, job.opset)
    else:
        export_torch(program, path, about)


def dense_twin(model: nn.Module) -> nn.Module:
    """A copy of a model at keep ratio 1, with the same weights."""
    twin = copy.deepcopy(model)
    backbone = backbone_of(twin)
    backbone.set_keep_ratios((1.0,) * len(backbone.keep_ratios))
    return twin


def verify(model: nn.Module, job: Job, path: Path, images: Tensor) -> list[Parity]:
    """Compare a written graph with its model, at several sizes if it is dynamic.

    Args:
        model: that it was made from.
        job: as it was written.
        path: the file.
        images: (n, C, *job.hw), n a multiple of the batch size.

    Returns:
        One for each size.
    """
    run = load_exported(path)
    sets = [images]
    if job.dynamic:
        divisor = size_divisor(model)
        others = [(MIN_STEPS * divisor, 5 * divisor), (9 * divisor, 5 * divisor)]
        sets += [made_up_images(len(images), hw, channels=job.channels) for hw in others]
    return [check_parity(model, run, each.split(job.batch)) for each in sets]


def compare_with_dense(
    model: nn.Module, job: Job, path: Path, images: Tensor, rounds: int, threads: int
) -> dict[str, Any]:
    """Write the dense twin's graph too, and time both, by turns.

    Args:
        model: that ``path`` was made from.
        job: as it was written.
        path: the file.
        images: (n, C, *job.hw), n a multiple of the batch size.
        rounds: timed calls of each.
        threads: of the runtime.

    Returns:
        ``dense_multiply_adds`` and the medians ``ms`` and ``dense_ms`` of a batch.
    """
    batches = images.split(job.batch)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with TemporaryDirectory() as folder:
            dense = Path(folder) / f'dense{path.suffix}'
            write(dense_twin(model), job, dense, {})
            runs = {
                name: load_exported(file, threads)
                for name, file in (('ms', path), ('dense_ms', dense))
            }
            times = measure_latency(runs, batches, rounds=rounds)
            return {
                'dense_multiply_adds': executed_multiply_adds(dense, batches[0]),
                **{name: round(taken.median, 3) for name, taken in times.items()},
            }
    finally:
        torch.set_num_threads(before)


def parity_json(parities: Sequence[Parity]) -> list[dict[str, Any]]:
    """What was compared, as values that JSON has."""
    return [asdict(parity) | {'holds': parity.holds} for parity in parities]
