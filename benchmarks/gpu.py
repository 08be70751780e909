"""mmdyn on a GPU: the hosts' dense models and ours, eager, compiled and as CUDA graphs.

Random weights, the same in both; see docs/benchmarks.md. Every row is saved to gpu.json when
measured, the most important ones first; what does not fit into --seconds is skipped and listed. At
the end gpu.md and gpu.png are written.
"""

import argparse
import gc
import itertools
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gpu_models
import gpu_report
import peer_models
import torch
from gpu_models import COMPILED, EAGER, GRAPH, Item, Row, first_line

from mmdyn import cli
from mmdyn.analysis.counting import count_macs
from mmdyn.analysis.machine import describe_machine, versions
from mmdyn.analysis.measuring import Measurement, Run, Spread, measure, peak_memory, threads
from mmdyn.checks import prepare_file
from mmdyn.whole_files import write_figure, write_json, write_text

HERE = Path(__file__).parent
BATCHES = 4
TIMING = dict(rounds=5, seconds=2.0, warmup=2)
TINY_TIMING = dict(rounds=2, seconds=0.0, warmup=1)
# Everything in order of measurement.
CHECKED = ('swin-s', 'upernet-t', 'convnext-s', 'deit-s', 'uperhead-t')
MODELS = (*CHECKED, 'swin-t', 'swin-b', 'convnext-b')
SIZES = (((512, 512), 8), ((512, 512), 1), ((512, 512), 32), ((800, 1216), 2))
TINY_SIZES = (((64, 96), 2),)
COMPILED_FIRST = (('swin-s', 8, 'bf16'), ('upernet-t', 8, 'bf16'))
TINY_COMPILED = (('deit-s', 2, 'bf16'),)
# Expected seconds of a step until one of its kind was timed.
GUESSES = dict(check=10.0, cell=15.0, compiling=60.0)
IDENTITY = ('group', 'model', 'size', 'batch', 'dtype', 'mode', 'contender')
Key = tuple[str, str]
"""A contender and a mode."""


@dataclass(frozen=True)
class Cell:
    """A comparison: a host's model and ours, on batches of one size.

    Attributes:
        model: a name for :func:`gpu_models.build`.
        shape, batch: (h, w) of the images; batch size.
        dtype: ``'fp32'``, ``'tf32'`` or ``'bf16'``.
        modes: to measure.
    """

    model: str
    shape: tuple[int, int]
    batch: int
    dtype: str
    modes: tuple[str, ...] = (EAGER,)

    def row(self, group: str | None = None, **more: Any) -> Row:
        """Make a row; its group defaults to the kind of model."""
        group = group or gpu_models.GROUPS.get(self.model.partition('-')[0], 'backbone')
        size = f'{self.shape[0]}x{self.shape[1]}'
        about = dict(group=group, model=self.model, size=size, batch=self.batch, dtype=self.dtype)
        return about | more


@dataclass(frozen=True)
class Step:
    """A step of the run: kind (of :data:`GUESSES`), function that yields rows, and cell."""

    kind: str
    measure: Callable[['Bench', Cell], Iterator[Row]]
    cell: Cell

    def __str__(self) -> str:
        cell = ' '.join(map(str, self.cell.row().values()))
        return f'{self.measure.__name__} of {cell}, {", ".join(self.cell.modes)}'


class Bench:
    """State of a run: device, time left, results.

    Args:
        tiny: whether to use tiny models and images on the CPU.
        seconds: time limit.
        path: of the results.
    """

    def __init__(self, tiny: bool, seconds: float, path: Path) -> None:
        self.tiny, self.path = tiny, path
        self.device = torch.device('cpu' if tiny else 'cuda')
        self.timing: dict[str, Any] = TINY_TIMING if tiny else TIMING
        self.end = time.perf_counter() + seconds
        self.longest: dict[str, float] = {}
        machine = describe_machine(self.device) | gpu_details(self.device)
        self.results: dict[str, Any] = dict(tiny=tiny, seconds=seconds, machine=machine)
        self.results |= dict(versions=versions(), skipped=[], rows=[])

    def fits(self, kind: str, count: int = 1) -> bool:
        """Whether some more steps fit in, by the longest of their kind so far."""
        expected = count * self.longest.get(kind, GUESSES[kind])
        return time.perf_counter() + expected <= self.end

    def took(self, kind: str, seconds: float) -> None:
        """Record the time of a step."""
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))

    def add(self, row: Row) -> None:
        """Add a row, replacing an earlier measurement, print it and save all."""
        kept = self.results['rows']
        kept[:] = [one for one in kept if any(one.get(k) != row.get(k) for k in IDENTITY)]
        kept.append(row)
        write_json(self.path, self.results)
        about = [str(row[key]) for key in IDENTITY if key in row]
        hidden = (*IDENTITY, *(f'{key}{end}' for key in row for end in ('_lower', '_upper')))
        figures = [f'{key}={value}' for key, value in row.items() if key not in hidden]
        print(*about, *figures, flush=True)

    def skip(self, what: object) -> None:
        """Record what was skipped for lack of time."""
        self.results['skipped'].append(str(what))
        print(f'no time left: {what}', flush=True)

    def build(self, cell: Cell) -> tuple[gpu_models.Contenders, list[Item]]:
        """Build the contenders of a cell, with fixed random selection, and batches."""
        contenders = gpu_models.build(cell.model, cell.shape, self.device, self.tiny)
        batches = gpu_models.batches_for(contenders, cell.shape, cell.batch, self.device, BATCHES)
        gpu_models.draw(contenders, batches[0])
        return contenders, batches

    def run(self, steps: Sequence[Step]) -> None:
        """Run the steps that fit in; a failure becomes a row."""
        for step in steps:
            # A comparison needs at least two compiled models.
            if not self.fits(step.kind, 2 if step.kind == 'compiling' else 1):
                self.skip(step)
                continue
            start = time.perf_counter()
            try:
                with gpu_models.tf32(step.cell.dtype != 'fp32'):
                    for row in step.measure(self, step.cell):
                        self.add(row)
            except Exception as error:  # continue with the others
                traceback.print_exc()
                self.add(step.cell.row(step.measure.__name__, failed=first_line(error)))
            if step.kind != 'compiling':  # each compilation is timed on its own
                self.took(step.kind, time.perf_counter() - start)
            torch.compiler.reset()
            gc.collect()
            if self.device.type == 'cuda':
                torch.cuda.empty_cache()
        write_json(self.path, self.results)


def gpu_details(device: torch.device) -> Row:
    """Driver, CUDA, cuDNN and memory of a GPU; empty for a CPU."""
    if device.type != 'cuda':
        return {}
    driver = None
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        driver = found[0] if found else None
    return dict(
        driver=driver,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        gpu_gib=round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
    )


def speed(bench: Bench, cell: Cell) -> Iterator[Row]:
    """Time the host's model and ours in the cell's modes, in interleaved rounds."""
    contenders, batches = bench.build(cell)
    pool = torch.cuda.graph_pool_handle() if GRAPH in cell.modes else None
    runs: dict[Key, Run] = {}
    macs: dict[Key, float] = {}
    extra: dict[Key, Row] = {}
    for mode, (name, forward) in itertools.product(cell.modes, contenders.runs.items()):
        if mode == COMPILED and name == 'random':
            continue  # executes the same as the sparse one
        if mode == COMPILED and not bench.fits('compiling'):
            bench.skip(Step('compiling', speed, replace(cell, modes=(f'{name} {mode}',))))
            continue
        try:
            with torch.inference_mode():
                run, extra[name, mode] = prepare(bench, cell.dtype, forward, mode, batches, pool)
            # Operators of graphs and compiled code can't be counted; use the eager count.
            macs[name, mode] = macs.get((name, EAGER)) or count_macs(partial(forward, batches[0]))
            runs[name, mode] = run
        except Exception as error:
            yield cell.row(mode=mode, contender=name, failed=first_line(error))
    if runs:
        found = measure(runs, batches, macs=macs, memory=False, **bench.timing)
        for row in compared(cell, found, contenders.hosts, contenders.dense):
            yield row | extra[row['contender'], row['mode']]


def prepare(
    bench: Bench, dtype: str, forward: Run, mode: str, batches: Sequence[Item], pool: Any
) -> tuple[Run, Row]:
    """Prepare a contender in a mode; returns it with figures of its first calls."""
    eager = gpu_models.eager(forward, dtype, bench.device)
    if mode == EAGER:
        eager(batches[0])
        peak = peak_memory(lambda: eager(batches[0]), bench.device)
        return eager, dict(peak_mib=round(peak / 2**20, 1))
    start = time.perf_counter()
    if mode == GRAPH:
        run = gpu_models.captured(eager, batches[0], pool)
    else:
        run = gpu_models.compiled(forward, dtype, bench.device)
    run(batches[0])
    if bench.device.type == 'cuda':
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if mode == COMPILED:
        bench.took('compiling', seconds)
    # Compared on other images, to detect values baked into a graph.
    found = gpu_models.deviation(run(batches[1]), eager(batches[1]))
    return run, dict(first_s=round(seconds, 2), deviation_from_eager=found)


def compared(
    cell: Cell, found: Mapping[Key, Measurement], hosts: Collection[str], dense: str | None
) -> Iterator[Row]:
    """Rows of a measurement, relative to the host's and our own dense model."""

    def fastest(*modes: str) -> Key | None:
        keys = [key for key in found if key[0] in hosts and key[1] in modes]
        return min(keys, key=lambda key: found[key].latency.median, default=None)

    best = fastest(EAGER, GRAPH, COMPILED)
    for (name, mode), one in found.items():
        row = cell.row(mode=mode, contender=name, **spread('ms', one.latency))
        row |= dict(rounds=len(one.latency.samples), gmacs=round(one.macs / 1e9, 4))
        host, ours = fastest(mode), found.get((dense, mode))
        if host and best:
            row |= spread('speedup', one.speedup(found[host]))
            row |= spread('speedup_over_best', one.speedup(found[best])) | dict(best=' '.join(best))
        if ours and name not in (*hosts, dense):
            row |= dict(
                realised=round(one.realised(ours).median, 4),
                time_saved=round(1 - 1 / one.speedup(ours).median, 4),
                work_saved=round(1 - one.macs / ours.macs, 4),
            )
        yield row


def spread(name: str, values: Spread) -> Row:
    """Median and quartiles as fields of a row."""
    of = values.rounded()
    return {name: of['median'], f'{name}_lower': of['lower'], f'{name}_upper': of['upper']}


def parity(bench: Bench, cell: Cell) -> Iterator[Row]:
    """Deviation of the device's maps from the CPU's in fp32."""
    cpu = torch.device('cpu')
    here, batches = bench.build(cell)
    there = gpu_models.build(cell.model, cell.shape, cpu, bench.tiny)
    item = gpu_models.moved(batches[0], cpu)
    gpu_models.draw(there, item)
    for name, forward in here.runs.items():
        try:
            with torch.inference_mode():
                found = gpu_models.eager(forward, cell.dtype, bench.device)(batches[0])
                value = gpu_models.deviation(found, there.runs[name](item))
            yield cell.row('parity', contender=name, deviation=value)
        except Exception as error:
            yield cell.row('parity', contender=name, failed=first_line(error))


def synchronisations(bench: Bench, cell: Cell) -> Iterator[Row]:
    """Number and places of synchronisations in a warm forward."""
    contenders, batches = bench.build(cell)
    for name, forward in contenders.runs.items():
        run = gpu_models.eager(forward, cell.dtype, bench.device)
        with torch.inference_mode():
            found = gpu_models.count_synchronisations(lambda run=run: run(batches[0]))
        yield cell.row('synchronisations', contender=name, **found)


def training(bench: Bench, cell: Cell) -> Iterator[Row]:
    """Time a training step of mmseg's Swin and of ours in masked execution."""
    _, batches = bench.build(cell)
    size = 'tiny' if bench.tiny else cell.model.removeprefix('swin-')
    dtype = torch.bfloat16 if cell.dtype == 'bf16' else None
    with gpu_models.tf32(False):  # for the comparison of outputs
        built = peer_models.swin_training(batches[0], size, dtype)
    runs = {name: built.contenders[name] for name in ('mmseg', 'masked')}
    device = bench.device
    found = measure(runs, batches, macs=built.macs, device=device, grad=True, **bench.timing)
    for row in compared(cell, {(name, EAGER): one for name, one in found.items()}, ['mmseg'], None):
        peak = found[row['contender']].peak_bytes or 0
        yield row | dict(group='training', peak_mib=round(peak / 2**20, 1))


def plan(tiny: bool, models: Collection[str]) -> list[Step]:
    """All steps for some models, in order."""
    sizes = TINY_SIZES if tiny else SIZES
    modes = (EAGER,) if tiny else (EAGER, GRAPH)
    shape = sizes[0][0]

    def cells(dtype: str, sizes: Sequence[tuple], *more: str) -> list[Cell]:
        names = CHECKED if tiny else MODELS  # the others have the same tiny model
        return [Cell(name, *size, dtype, (*modes, *more)) for size in sizes for name in names]

    whole = [c for dtype in ('bf16', 'tf32') for c in cells(dtype, sizes, COMPILED)]
    chosen = TINY_COMPILED if tiny else COMPILED_FIRST
    first = [cell for cell in whole if (cell.model, cell.batch, cell.dtype) in chosen]
    checks = [Cell(model, shape, 1, dtype) for dtype in ('fp32', 'bf16') for model in CHECKED]
    steps = (
        ('check', parity, checks),
        ('check', synchronisations, [] if tiny else [c for c in checks if c.dtype == 'bf16']),
        ('cell', speed, cells('bf16', sizes[:2])),
        ('cell', training, [Cell('swin-t', *sizes[0], dtype) for dtype in ('bf16', 'tf32')]),
        ('compiling', speed, first),
        ('cell', speed, cells('bf16', sizes[2:])),
        ('cell', speed, cells('tf32', sizes)),
        ('compiling', speed, [] if tiny else [cell for cell in whole if cell not in first]),
    )
    return [Step(kind, run, c) for kind, run, cells in steps for c in cells if c.model in models]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument(
        '--seconds',
        type=float,
        default=400.0,
        metavar='S',
        help='time limit; steps that would exceed it are skipped (default: %(default)s)',
    )
    parser.add_argument(
        '--models',
        nargs='+',
        choices=MODELS,
        default=MODELS,
        metavar='MODEL',
        help=f'models to measure (default: all: {", ".join(MODELS)})',
    )
    parser.add_argument(
        '--tiny',
        action='store_true',
        help='tiny models and images on the CPU, no CUDA graphs and little compilation: a smoke '
        'test, its numbers mean nothing',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE.json',
        help='results file, with page (.md) and plot (.png) next to it; overwritten '
        "(default: gpu.json in this file's folder; work_dirs/gpu/gpu.json if --tiny)",
    )
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = (Path('work_dirs/gpu') if args.tiny else HERE) / 'gpu.json'
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries, between the rows
    torch.backends.cudnn.benchmark = True  # as in mmseg's configs
    with cli.exit_on_bad_input():
        if not (args.tiny or torch.cuda.is_available()):
            raise ValueError('torch finds no CUDA device; use --tiny on a CPU')
        if args.out.suffix != '.json':
            raise ValueError(f'--out {args.out}: give a file that ends in .json')
        prepare_file('--out', args.out)
    with threads(1 if args.tiny else None):
        bench = Bench(args.tiny, args.seconds, args.out)
        bench.run(plan(args.tiny, args.models))
    write_text(args.out.with_suffix('.md'), gpu_report.page(bench.results))
    write_figure(args.out.with_suffix('.png'), gpu_report.draw(bench.results), dpi=150)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
