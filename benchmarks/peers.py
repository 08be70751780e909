"""Sparse backbones against the dense ones of mmseg, mmdet and timm, side by side in one process.

Same weights and images, interleaved rounds; see docs/benchmarks.md. Writes peers.json after every
group, then peers.md and peers.png. Groups in an existing file from the same machine and versions
are kept unless measured again.
"""

import argparse
import contextlib
import gc
import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_models
import torch
from common import add_measuring_arguments, read_results

from mmdyn import cli
from mmdyn.analysis.machine import describe, describe_machine, load_average, versions
from mmdyn.analysis.measuring import (
    Measurement,
    Spread,
    measure,
    memory_method,
    threads,
)
from mmdyn.analysis.progress import Meter
from mmdyn.analysis.tables import to_markdown
from mmdyn.visualization.bars import Bar, draw_bars
from mmdyn.whole_files import write_figure, write_json, write_text

HERE = Path(__file__).parent
WARMUP = 2
QUICK_SHAPE = (64, 96)
# Target of each figure, by the row's name. A lower bound for speed-ups and realised savings, an
# upper bound for others.
AIMS: dict[str, float] = {
    **{f'swin-{size}-512: dense, speed-up over mmseg': 1.12 for size in 'tsb'},
    **{
        f'swin-{size}-{case}: sparse, speed-up over mmseg': aim
        for case, aims in (
            ('512', (1.28, 1.40, 1.40)),
            ('512-batch4', (1.28, 1.45, 1.45)),
            ('800x1216', (1.20, 1.35, 1.35)),
        )
        for size, aim in zip('tsb', aims, strict=True)
    },
    **{f'convnext-{size}-512: sparse, speed-up over timm': 1.40 for size in 'sb'},
    'deit-s-512: sparse, speed-up over timm': 1.45,
    **{
        f'{group}: sparse, realised over dense': 0.95
        for group in (
            *(f'swin-{size}-{case}' for case in ('512', '512-batch4', '800x1216') for size in 'sb'),
            *('convnext-s-512', 'convnext-b-512', 'deit-s-512'),
        )
    },
    'swin-s-bf16: sparse bf16, speed-up over mmseg': 2.5,
    'swin-s-bf16: sparse bf16, speed-up over mmseg bf16': 1.35,
    'swin-s-compiled: sparse compiled, speed-up over mmseg': 1.70,
    'swin-s-compiled: sparse compiled, first call (s)': 120.0,
    'swin-s-compiled: sparse, time over that of its products': 1.5,
    'swin-s-compiled: sparse compiled, time over that of its products': 1.25,
    'swin-t-training: masked, time over mmseg': 1.25,
    'swin-t-training: masked, peak memory over mmseg': 1.30,
}


@dataclass(frozen=True)
class Row:
    """A figure of the report.

    Attributes:
        of: a contender.
        figure: a key of :data:`FIGURES`.
        against: contenders; the fastest counts.
    """

    of: str
    figure: str
    against: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the row."""
        over = f' over {self.against[0]}' if self.against else ''
        return f'{self.of}, {self.figure}{over}'


@dataclass(frozen=True)
class Group:
    """Contenders that are measured together.

    Attributes:
        name: for ``--rows``.
        build: builds the contenders from a batch of images and a size.
        size: of the models.
        rows: figures to report.
        shape: (h, w) in pixels.
        batch_size: images per batch.
        cost: relative time of a round.
        grad: whether the contenders train.
    """

    name: str
    build: Callable[..., peer_models.Built]
    size: str
    rows: tuple[Row, ...]
    shape: tuple[int, int] = (512, 512)
    batch_size: int = 1
    cost: float = 1.0
    grad: bool = False


def overhead(found: Mapping[str, Measurement], row: Row) -> Spread:
    """Time over that of the multiply-adds at the best rate of any matrix product."""
    of = found[row.of]
    ideal = of.macs / peer_models.product_rate(found)
    return Spread(*(getattr(of.latency, end) / ideal for end in ('median', 'lower', 'upper')))


def over(compare: Callable[[Measurement, Measurement], Spread]) -> Callable[..., Spread]:
    """A figure that compares a contender with the fastest of its references."""

    def figure(found: Mapping[str, Measurement], row: Row) -> Spread:
        fastest = min((found[name] for name in row.against), key=lambda one: one.latency.median)
        return compare(found[row.of], fastest)

    return figure


def exactly(value: float) -> Spread:
    """A figure without spread."""
    return Spread(value, value, value)


SPEEDUP, REALISED, OVERHEAD = 'speed-up', 'realised', 'time over that of its products'
TIME, MEMORY, COMPILING = 'time', 'peak memory', 'first call (s)'
FIGURES: dict[str, Callable[[Mapping[str, Measurement], Row], Spread]] = {
    SPEEDUP: over(Measurement.speedup),
    REALISED: over(Measurement.realised),
    TIME: over(lambda of, to: to.speedup(of)),
    MEMORY: over(lambda of, to: exactly(of.peak_bytes / to.peak_bytes)),
    OVERHEAD: overhead,
    COMPILING: lambda found, row: exactly(found[row.of].latency.first / 1000),
}
AT_LEAST = (SPEEDUP, REALISED)


def speedups(*peers: str, suffix: str = '') -> tuple[Row, ...]:
    """Speed-ups of ours dense, sparse and random over peers."""
    return tuple(Row(name + suffix, SPEEDUP, peers) for name in ('dense', 'sparse', 'random'))


def all_groups() -> tuple[Group, ...]:
    """Every group, in order of measurement."""
    saved = (Row('sparse', REALISED, ('dense',)),)
    factors = dict(t=1.0, s=1.8, b=3.0)
    swin = peer_models.swin
    groups = []
    for size, factor in factors.items():
        over_both = (*speedups('mmseg'), Row('sparse', SPEEDUP, ('mmdet',)))
        rows = over_both if size == 't' else (*over_both, *saved)
        both = _with(swin, hosts=('mmseg', 'mmdet'))
        groups.append(Group(f'swin-{size}-512', both, size, rows, cost=1.25 * factor))
    for size, factor in factors.items():
        rows = speedups('mmseg') if size == 't' else (*speedups('mmseg'), *saved)
        name = f'swin-{size}-512-batch4'
        groups.append(Group(name, swin, size, rows, batch_size=4, cost=4 * factor))
        name = f'swin-{size}-800x1216'
        groups.append(Group(name, swin, size, rows, shape=(800, 1216), cost=3.7 * factor))
    for size, cost in (('s', 2.0), ('b', 3.3)):
        rows = (*speedups('timm', 'timm channels-last'), *saved)
        groups.append(Group(f'convnext-{size}-512', peer_models.convnext, size, rows, cost=cost))
    groups.append(Group('deit-s-512', peer_models.vit, 's', (*speedups('timm'), *saved), cost=0.7))
    rows = (
        *speedups('mmseg', suffix=' bf16'),
        *(Row(name, SPEEDUP, ('mmseg bf16',)) for name in ('sparse bf16', 'random bf16')),
    )
    groups.append(Group('swin-s-bf16', peer_models.swin_mixed, 's', rows, cost=2.0))
    rows = (
        Row('sparse compiled', SPEEDUP, ('mmseg',)),
        Row('random compiled', SPEEDUP, ('mmseg',)),
        Row('sparse compiled', COMPILING),
        Row('sparse', OVERHEAD),
        Row('sparse compiled', OVERHEAD),
    )
    groups.append(Group('swin-s-compiled', peer_models.swin_compiled, 's', rows, cost=4.0))
    rows = tuple(
        Row(name, figure, ('mmseg',))
        for name in ('masked', 'masked random')
        for figure in (TIME, MEMORY)
    )
    training = peer_models.swin_training
    groups.append(Group('swin-t-training', training, 't', rows, batch_size=2, cost=5.0, grad=True))
    return tuple(groups)


def _with(build: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return lambda images, size: build(images, size, **settings)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    names = [group.name for group in all_groups()]
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument(
        '--rows',
        nargs='+',
        choices=names,
        default=names,
        metavar='GROUP',
        help=f'groups of rows to measure (default: all: {", ".join(names)})',
    )
    add_measuring_arguments(parser)
    parser.add_argument('--threads', type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='only write peers.md and peers.png from peers.json',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help="folder for the results (default: this file's; work_dirs/peers if --quick)",
    )
    args = parser.parse_args(argv)
    if args.rounds < 1 or (args.threads is not None and args.threads < 1):
        parser.error('--rounds and --threads must be at least 1')
    if args.out is None:
        args.out = Path('work_dirs/peers') if args.quick else HERE
    return args


def measure_group(
    group: Group, args: argparse.Namespace, on_call: Callable[[], None]
) -> dict[str, Any]:
    """Build, compare and measure a group; returns the results for JSON."""
    shape = QUICK_SHAPE if args.quick else group.shape
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(group.batch_size, 3, *shape, generator=generator) for _ in range(4)]
    load = load_average()
    with fresh_compile_cache():
        built = group.build(images[0], 'tiny' if args.quick else group.size)
        found = measure(
            built.contenders,
            images,
            macs=built.macs,
            grad=group.grad,
            on_call=on_call,
            rounds=2 if args.quick else args.rounds,
            seconds=0.0 if args.quick else args.min_seconds,
            warmup=WARMUP,
        )
    return dict(
        shape=list(shape),
        batch_size=group.batch_size,
        load_average=load,
        deviations={name: float(f'{value:.2g}') for name, value in built.deviations.items()},
        contenders={name: one.as_json() for name, one in found.items()},
        rows={
            row.name: dict(figure=row.figure, of=row.of) | FIGURES[row.figure](found, row).rounded()
            for row in group.rows
        },
    )


@contextlib.contextmanager
def fresh_compile_cache() -> Iterator[None]:
    """Use an empty compilation cache within the block."""
    name = 'TORCHINDUCTOR_CACHE_DIR'
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def start(args: argparse.Namespace) -> dict[str, Any]:
    """Read the results of an existing file, or start new ones.

    Raises:
        ValueError: if the file is from another machine, other versions or settings.
        FileNotFoundError: if there is no file to report on.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'peers.json'
    here = dict(quick=args.quick, machine=describe_machine(), versions=versions())
    here |= dict(groups={}, failed={})
    if not path.exists():
        if args.report_only:
            raise FileNotFoundError(f'{path} does not exist: nothing to report on')
        return here
    if args.report_only:
        return json.loads(path.read_text())
    return read_results(path, here)


def run(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Measure the requested groups, saving each."""
    groups = [group for group in all_groups() if group.name in args.rows]
    rounds = WARMUP + (2 if args.quick else args.rounds)
    with Meter({group.name: group.cost for group in groups}, sys.stderr) as meter:
        for group in groups:
            # Approximate number of calls; groups with fewer contenders finish early.
            with meter.stage(group.name, 5 * rounds) as advance:
                try:
                    results['groups'][group.name] = measure_group(group, args, advance)
                    results['failed'].pop(group.name, None)
                except Exception as error:  # continue with the other groups
                    traceback.print_exc()
                    results['failed'][group.name] = type(error).__name__
            write_json(args.out / 'peers.json', results)
            gc.collect()


def flat_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with its full name, in order of measurement."""
    for group in all_groups():
        for name, row in results['groups'].get(group.name, {}).get('rows', {}).items():
            yield f'{group.name}: {name}', row


def verdict(name: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """Aim of a row and whether it was reached, as text."""
    aim = AIMS.get(name)
    if aim is None:
        return '-', '-'
    at_least = row['figure'] in AT_LEAST
    reached = row['median'] >= aim if at_least else row['median'] <= aim
    return f'{"≥" if at_least else "≤"} {aim:g}', 'reached' if reached else 'not reached'


TERMS = f"""\
- **Models** have random weights, the same ones in both where outputs are compared first (at keep
  ratio 1 they agree to {peer_models.TOLERANCE:g}), and run on generated images of 512x512 in fp32,
  unless said.
- **Dense** is ours at keep ratio 1, **sparse** at 0.7, 0.5, 0.3 (DeiT: 0.7, 0.49, 0.343),
  **random** the same with a random choice.
- **Figures** are the median [quartiles] over interleaved rounds.
- **timm's ConvNeXt** is timed in both memory formats and the faster one counts; it lacks the output
  norms that ours has.
- **Training**: a step of the backbone alone, without a head: forward, backward and AdamW on the
  mean square of its maps; ours in masked execution with the keep-ratio loss.
- **Peak memory** is {memory_method('cpu')}.
- **Time over that of its products**: the time over what the executed multiply-adds take at the best
  rate of any matrix product in the same rounds.
- **First call** includes compilation, with nothing cached.
"""


def report(results: Mapping[str, Any]) -> str:
    """Format the results as Markdown."""
    rows = [(name, figure(row), *verdict(name, row)) for name, row in flat_rows(results)]
    parts = [
        '# How fast are sparse backbones beside dense ones?\n',
        'Ours beside the dense backbones of mmseg, mmdet and timm: `python benchmarks/peers.py` '
        '([how it is measured](../docs/benchmarks.md)).\n',
        f'{describe(results["machine"], results["versions"])}.\n',
        *(['**Tiny models, a smoke test: these numbers mean nothing.**\n'] * results['quick']),
        TERMS,
        to_markdown(('row', 'figure', 'aim', ''), rows),
        *(f'Not measured: {name} ({why}).\n' for name, why in results['failed'].items()),
        '## Every contender\n',
    ]
    for name, group in results['groups'].items():
        parts.append(
            f'**{name}**: {group["shape"][0]}x{group["shape"][1]}, batch {group["batch_size"]}, '
            f'load average {group["load_average"]} before; largest deviation at keep ratio 1 '
            + ', '.join(f'{value:g} from {peer}' for peer, value in group['deviations'].items())
            + '.\n'
        )
        lines = [contender_cells(*item) for item in group['contenders'].items()]
        parts.append(to_markdown(CONTENDER_HEADINGS, lines))
    return '\n'.join(parts)


CONTENDER_HEADINGS = ('contender', 'ms', 'rounds', 'GMACs', 'peak MiB')


def contender_cells(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of a contender, for :data:`CONTENDER_HEADINGS`."""
    return (
        name,
        Spread(**one['ms']).text('{:.1f}'),
        str(one['rounds']),
        f'{one["gmacs"]:.2f}',
        f'{one["peak_mib"]:.0f}',
    )


def figure(row: Mapping[str, Any]) -> str:
    """Format a row's figure."""
    if row['lower'] == row['upper']:
        return f'{row["median"]:.2f}'
    return Spread(row['median'], row['lower'], row['upper']).text('{:.2f}')


def draw(results: Mapping[str, Any]):
    """Draw the speed-ups as a bar chart with matplotlib."""
    bars = [
        Bar(
            name.replace(f', {SPEEDUP}', ''),
            row['of'].split()[0],
            row['median'],
            row['lower'],
            row['upper'],
            f'{row["median"]:.2f}x',
            AIMS.get(name),
        )
        for name, row in flat_rows(results)
        if row['figure'] == SPEEDUP
    ]
    title = "Speed-up over others' dense models"
    return draw_bars({'same weights, interleaved rounds': bars}, 'times as fast', title)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code, 1 if a group failed."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries; they would break the progress display
    with threads(args.threads):
        with cli.exit_on_bad_input():
            results = start(args)
        if not args.report_only:
            run(args, results)
    page = report(results)
    write_text(args.out / 'peers.md', page)
    write_figure(args.out / 'peers.png', draw(results), dpi=150)
    print(page)
    return 1 if results['failed'] else 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
