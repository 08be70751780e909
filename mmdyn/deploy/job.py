"""An export from beginning to end: check, write, compare, time."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmdyn.analysis import count_macs, measuring
from mmdyn.deploy import graphs
from mmdyn.deploy.exportable import (
    check_exportable,
    example_size,
    exportable,
    size_divisor,
)
from mmdyn.deploy.parity import Parity, check_parity, made_up_images, reference_of
from mmdyn.models.deciding import keep_everything


@dataclass(frozen=True)
class Job:
    """Settings of an export.

    Attributes:
        format: ``'onnx'`` or ``'torch-export'``.
        hw: (height, width) in pixels of the graph, or, if dynamic, for comparison and timing.
        batch: images per batch.
        dynamic: whether the graph takes all sizes with sides that are multiples of
            :func:`mmdyn.deploy.size_divisor`.
        opset: of ONNX.
        channels: of an image.
    """

    format: str
    hw: tuple[int, int]
    batch: int = 1
    dynamic: bool = False
    opset: int = graphs.DEFAULT_OPSET
    channels: int = 3


def check_job(model: nn.Module, job: Job) -> None:
    """Check the settings of an export.

    Raises:
        ValueError: naming the error and the remedy.
    """
    if job.opset not in graphs.OPSETS:
        raise ValueError(
            f'opset {job.opset} is not supported: give one of {graphs.OPSETS[0]} to '
            f'{graphs.OPSETS[-1]} (the default is {graphs.DEFAULT_OPSET})'
        )
    if job.batch < 1:
        raise ValueError(f'the batch size must be at least 1, got {job.batch}')
    if min(job.hw) < 1:
        raise ValueError(f'the size must be positive, got {job.hw[0]}x{job.hw[1]}')
    check_exportable(model, job.dynamic)
    if job.dynamic:
        divisor = size_divisor(model)
        least, most = graphs.MIN_STEPS * divisor, graphs.MAX_SIDE // divisor * divisor
        near = [min(max(-(-side // divisor) * divisor, least), most) for side in job.hw]
        if near != list(job.hw):
            raise ValueError(
                f'a graph of dynamic size needs sides that are multiples of {divisor}, from '
                f'{least} to {most}, got {job.hw[0]}x{job.hw[1]}: give --shape {near[0]} '
                f'{near[1]}, or a fixed size'
            )
    reference_of(model)(torch.zeros(1, job.channels, *job.hw))  # raises if images are too small


def write(model: nn.Module, job: Job, path: Path, about: dict[str, Any]) -> None:
    """Trace a model and write its graph.

    Args:
        model: with weights and the keep ratios to export.
        job: checked.
        path: output file.
        about: metadata for the graph.
    """
    divisor = size_divisor(model) if job.dynamic else None
    hw = example_size(model) if job.dynamic else job.hw
    example = torch.zeros(job.batch, job.channels, *hw)
    path.parent.mkdir(parents=True, exist_ok=True)
    program = graphs.trace(exportable(model, job.dynamic), example, divisor)
    if job.format == 'onnx':
        graphs.export_onnx(program, path, about, job.opset)
    else:
        graphs.export_torch(program, path, about)


def verify(model: nn.Module, job: Job, path: Path, images: Tensor) -> list[Parity]:
    """Compare a written graph with its model, at several sizes if it is dynamic.

    Args:
        model, job, path: as for :func:`write`.
        images: (n, C, *job.hw), n a multiple of the batch size.
    """
    run = graphs.load_exported(path)
    sets = [images]
    if job.dynamic:
        step = size_divisor(model)
        others = [(graphs.MIN_STEPS * step, 5 * step), (9 * step, 5 * step)]
        sets += [made_up_images(len(images), hw, channels=job.channels) for hw in others]
    return [check_parity(model, run, each.split(job.batch)) for each in sets]


def compare_with_dense(
    model: nn.Module, job: Job, path: Path, images: Tensor, rounds: int, threads: int
) -> dict[str, float]:
    """Also write the graph of the dense twin, and time both in interleaved rounds.

    Args:
        model, job, path: as for :func:`write`.
        images: (n, C, *job.hw), n a multiple of the batch size.
        rounds: timed calls of each.
        threads: of the runtime.

    Returns:
        Medians ``ms`` and ``dense_ms`` per batch.
    """
    with measuring.threads(threads), TemporaryDirectory() as folder:
        dense = Path(folder) / f'dense{path.suffix}'
        write(keep_everything(copy.deepcopy(model)), job, dense, {})
        files = {'ms': path, 'dense_ms': dense}
        runs = {name: graphs.load_exported(file, threads) for name, file in files.items()}
        times = measuring.measure_latency(runs, images.split(job.batch), rounds=rounds)
    return {name: round(taken.median, 3) for name, taken in times.items()}


def multiply_adds(model: nn.Module, images: Tensor, dynamic: bool = False) -> int:
    """Count the multiply-adds per batch of the module that a model's graph is traced from.

    Args:
        model: with the keep ratios to export.
        images: (B, C, h, w).
        dynamic: whether the graph is of dynamic size.
    """
    # On the meta device a prepared model runs its plain layers, like the graph.
    graph, images = exportable(model, dynamic).to('meta'), images.to('meta')
    return count_macs(lambda: graph(images))
