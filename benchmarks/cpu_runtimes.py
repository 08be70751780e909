"""Whole models on a CPU: the hosts' (eager and compiled), onnxruntime, OpenVINO, and ours.

Same weights and images, interleaved rounds, a fixed number of threads, batch 1. Writes
cpu_runtimes.json after every group, then cpu_runtimes.md and cpu_runtimes.png. Groups in an
existing file from the same machine and versions are kept unless measured again. Needs
requirements/benchmark.txt.
"""

import argparse
import gc
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cpu_models
import peer_models
import torch
from common import add_measuring_arguments, read_results
from cpu_models import Contender, Found, Options
from gpu_models import Row, first_line
from matplotlib.figure import Figure
from torch import Tensor

from mmdyn import cli
from mmdyn.analysis.counting import count_executed
from mmdyn.analysis.machine import describe, describe_machine, load_average, versions
from mmdyn.analysis.measuring import Measurement, Spread, measure, threads
from mmdyn.analysis.progress import Meter, quietly
from mmdyn.analysis.tables import to_markdown
from mmdyn.deploy.graphs import as_tuple
from mmdyn.memory import keep_freed_memory
from mmdyn.visualization.bars import Bar, draw_bars
from mmdyn.whole_files import write_figure, write_json, write_text

HERE = Path(__file__).parent
FILE = 'cpu_runtimes.json'
WARMUP = 1
QUICK_SHAPE = (64, 96)
LOWER = ('bfloat16', 'int8')
TOLERANCE = peer_models.TOLERANCE


@dataclass(frozen=True)
class Group:
    """Contenders that are measured together.

    Attributes:
        build: builds them.
        shape: (h, w) of the images in pixels.
        cost: relative time of a round.
    """

    build: Callable[[Options], Found]
    shape: tuple[int, int] = (512, 512)
    cost: float = 1.0


def _of(build: Callable[..., Found], *args: Any, **more: Any) -> Callable[[Options], Found]:
    return lambda options: build(options, *args, **more)


GROUPS = {
    'upernet-swin-t': Group(_of(cpu_models.segmentor, 'swin', 't', few=False), cost=50.0),
    'upernet-swin-s': Group(_of(cpu_models.segmentor, 'swin', 's'), cost=40.0),
    'upernet-convnext-t': Group(_of(cpu_models.segmentor, 'convnext', 't'), cost=35.0),
    'mask-rcnn-swin-s': Group(cpu_models.detector, (800, 1216), 30.0),
    **{
        f'{family}-{size}': Group(_of(cpu_models.backbone, family, size), cost=cost)
        for family, size, cost in (
            ('swin', 't', 4.0),
            ('swin', 's', 6.0),
            ('swin', 'b', 9.0),
            ('convnext', 's', 7.0),
            ('convnext', 'b', 11.0),
            ('deit', 's', 3.0),
        )
    },
    'swin-s-lower': Group(_of(cpu_models.backbone, 'swin', 's', precisions=LOWER), cost=10.0),
    'upernet-swin-t-lower': Group(
        _of(cpu_models.segmentor, 'swin', 't', precisions=LOWER), cost=60.0
    ),
}


@dataclass(frozen=True)
class Aim:
    """Target value of a figure.

    Attributes:
        group, contender: of the row.
        field: of the row.
        value: target.
        at_least: whether the target is a lower bound; else an upper bound.
    """

    group: str
    contender: str
    field: str
    value: float
    at_least: bool = True

    def reached(self, row: Row) -> bool:
        """Whether a row meets the target."""
        found = row[self.field]
        return found >= self.value if self.at_least else found <= self.value


STATIC = 'ours static stride 8 + sparse backbone prepared'
TILES = 'ours tiles 1/8 + sparse backbone prepared'
AIMS = (
    Aim('upernet-swin-t', 'ours exact prepared', 'speedup_over_best', 1.9),
    Aim('upernet-swin-t', STATIC, 'speedup_over_best', 3.3),
    Aim('upernet-swin-t', TILES, 'speedup_over_best', 3.3),
    Aim('upernet-swin-t', 'mmseg prepared', 'speedup_over_host', 2.0),
    Aim('upernet-swin-t', TILES, 'realised', 0.9),
    Aim('upernet-swin-t', 'ours exact', 'time_over_products', 1.15, at_least=False),
    Aim('upernet-swin-t', 'ours exact prepared', 'time_over_products', 1.4, at_least=False),
    Aim('mask-rcnn-swin-s', 'ours everything kept prepared', 'speedup_over_host', 1.9),
    *(
        Aim(f'swin-{size}', 'ours sparse prepared', 'speedup_over_host', value)
        for size, value in (('t', 1.28), ('s', 1.40), ('b', 1.40))
    ),
    *(
        Aim(group, 'ours sparse prepared', 'realised', 0.95)
        for group in ('swin-s', 'swin-b', 'convnext-s', 'convnext-b')
    ),
    *(
        Aim('swin-s-lower', f'ours sparse prepared, {precision}', 'speedup_over_own', 1.3)
        for precision in LOWER
    ),
)
# From column heading to field and format.
COLUMNS = {
    'over the best dense runtime': ('speedup_over_best', '{:.2f}x'),
    'over the host, eager': ('speedup_over_host', '{:.2f}x'),
    'over own dense': ('speedup_over_own', '{:.2f}x'),
    'realised': ('realised', '{:.2f}'),
    'GMACs': ('gmacs', '{:.1f}'),
    'GMAC/s': ('gmacs_per_s', '{:.1f}'),
    'time over that of its products': ('time_over_products', '{:.2f}'),
    'deviation': ('deviation', '{:.1e}'),
    'same class': ('agreement', '{:.2%}'),
}
FORMS = dict(COLUMNS.values())
MEANING = {field: heading for heading, (field, _) in COLUMNS.items()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument(
        '--groups',
        nargs='+',
        choices=GROUPS,
        default=list(GROUPS),
        metavar='GROUP',
        help=f'groups to measure (default: all: {", ".join(GROUPS)})',
    )
    parser.add_argument(
        '--without',
        nargs='+',
        choices=cpu_models.RUNTIMES,
        default=[],
        metavar='RUNTIME',
        help=f'runtimes to skip ({", ".join(cpu_models.RUNTIMES)})',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help="also measure the host's UperNet compiled by Inductor; compiling takes minutes",
    )
    add_measuring_arguments(parser)
    parser.add_argument(
        '--threads', type=int, default=2, help='threads per runtime (default: %(default)s)'
    )
    parser.add_argument(
        '--report-only',
        action='store_true',
        help=f'only write page and plot from {FILE}',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help="folder for the results (default: this file's; work_dirs/cpu_runtimes if --quick)",
    )
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1:
        parser.error('--rounds and --threads must be at least 1')
    if args.out is None:
        args.out = Path('work_dirs/cpu_runtimes') if args.quick else HERE
    return args


def start(args: argparse.Namespace) -> dict[str, Any]:
    """Read the results of an existing file, or start new ones.

    Raises:
        ValueError: if the file is from another machine, other versions or settings.
        FileNotFoundError: if there is no file to report on.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / FILE
    if args.report_only:
        if not path.exists():
            raise FileNotFoundError(f'{path} does not exist: nothing to report on')
        return json.loads(path.read_text())
    args.runtimes = cpu_models.check_runtimes(args.without)
    runtimes = {name: version(name) for name in args.runtimes}
    here = dict(quick=args.quick, machine=describe_machine(), versions=versions(), rows=[])
    if not path.exists():
        return here | dict(runtimes=runtimes)
    there = read_results(path, here)
    return there | dict(runtimes=there['runtimes'] | runtimes)


def run(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Measure the requested groups, saving each."""
    keep_freed_memory()  # as for prepared models; separate processes are not affected
    with Meter({name: GROUPS[name].cost for name in args.groups}, sys.stderr) as meter:
        for name in args.groups:
            # Approximate number of calls; groups with fewer contenders finish early.
            with meter.stage(name, 12 * ((2 if args.quick else args.rounds) + 3)) as advance:
                try:
                    rows = list(measure_group(name, args, advance))
                except Exception as error:  # continue with the other groups
                    traceback.print_exc()
                    rows = [dict(failed=first_line(error))]
            kept = [row for row in results['rows'] if row['group'] != name]
            about = dict(group=name, processor=results['machine']['cpu'], threads=args.threads)
            found = kept + [about | row for row in rows]
            results['rows'] = sorted(found, key=lambda row: list(GROUPS).index(row['group']))
            write_json(args.out / FILE, results)
            gc.collect()


def measure_group(
    name: str, args: argparse.Namespace, on_call: Callable[[], None]
) -> Iterator[Row]:
    """Build, compare and measure a group's contenders; yields a row for each."""
    group, load = GROUPS[name], load_average()
    shape = QUICK_SHAPE if args.quick else group.shape
    images = cpu_models.images_of(shape)
    with TemporaryDirectory() as folder:
        options = Options(
            images, args.quick, args.threads, args.runtimes, args.compile, Path(folder)
        )
        with quietly():
            built = group.build(options)
        with cpu_models.closing(built):
            macs, compared, missing = check(built, images[0], on_call)
            runs = {key: one.run for key, one in built.items() if key not in missing and one.timed}
            found = measure(
                {**runs, **peer_models.products()},
                images,
                macs=macs,
                memory=False,
                on_call=on_call,
                rounds=2 if args.quick else args.rounds,
                seconds=0.0 if args.quick else args.min_seconds,
                warmup=WARMUP,
            )
    about = dict(size=f'{shape[0]}x{shape[1]}', batch=1, load_average=load)
    for row in rows_of(found, built):
        yield about | row | compared.get(row['contender'], {})
    for contender, why in missing.items():
        yield about | dict(contender=contender, missing=why)


def check(
    built: Found, image: Tensor, on_call: Callable[[], None]
) -> tuple[dict[str, float], dict[str, Row], dict[str, str]]:
    """Call every contender once, count its multiply-adds and compare its outputs.

    Returns:
        Multiply-adds by contender; deviations of outputs; reasons why contenders are missing,
        such as outputs that don't agree.
    """
    macs: dict[str, float] = {}
    compared: dict[str, Row] = {}
    missing = {name: one for name, one in built.items() if isinstance(one, str)}
    references = {one.same_as for one in built.values() if isinstance(one, Contender)}
    outputs: dict[str, Sequence[Tensor]] = {}
    for name, one in built.items():
        if isinstance(one, str):
            continue
        try:
            with torch.inference_mode():
                one.run(image)  # first call, for compilation and choice of kernels
            found = None
            if not one.counted_as:
                count, found = count_executed(lambda one=one: one.run(image))
                macs[name] = count.total
                if count.unknown:
                    compared[name] = dict(uncounted=', '.join(sorted(count.unknown)))
            if one.same_as or name in references:
                if one.outputs is not None or found is None:
                    with torch.inference_mode():
                        found = (one.outputs or one.run)(image)
                found = as_tuple(found)
                if name in references:
                    outputs[name] = [x.clone() for x in found]
                if one.same_as:
                    row = compare(found, outputs[one.same_as])
                    compared[name] = compared.get(name, {}) | row
                    check_deviation(one, row['deviation'])
        except Exception as error:  # continue with the other contenders
            missing[name] = first_line(error)
        on_call()
    macs |= {
        name: macs[one.counted_as]
        for name, one in built.items()
        if name not in missing and one.counted_as
    }
    return macs, compared, missing


def compare(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Row:
    """Largest relative difference, and for logits the fraction of equal classes."""
    row: Row = dict(deviation=float(f'{peer_models.deviation(found, wanted):.2g}'))
    if len(wanted) == 1:
        same = found[0].argmax(1) == wanted[0].argmax(1)
        row['agreement'] = round(same.float().mean().item(), 6)
    return row


def check_deviation(one: Contender, deviation: float) -> None:
    """Refuse outputs that don't agree.

    Raises:
        RuntimeError: if the deviation exceeds :data:`TOLERANCE` and must not.
    """
    if not (one.differs or deviation <= TOLERANCE):
        raise RuntimeError(
            f'deviates from {one.same_as} by {deviation:.1e}, more than {TOLERANCE}: not the same '
            'function, so it was not measured'
        )


def rows_of(found: Mapping[str, Measurement], built: Found) -> Iterator[Row]:
    """Rows of the measured contenders and of the best matrix product."""
    rate = peer_models.product_rate(found)
    hosts = {name: one for name, one in found.items() if name in built and built[name].host}
    best = min(hosts, key=lambda name: hosts[name].latency.median)
    eager = next((name for name in hosts if name.endswith(' eager')), None)
    for name, one in found.items():
        if name not in built:
            continue
        seconds = one.latency.median / 1000
        row = dict(contender=name, dtype=built[name].dtype, **spread('ms', one.latency))
        row |= dict(rounds=len(one.latency.samples))
        row |= dict(best=best, **spread('speedup_over_best', one.speedup(hosts[best])))
        if eager is not None:
            row |= dict(host=eager, **spread('speedup_over_host', one.speedup(hosts[eager])))
        row |= dict(
            gmacs=round(one.macs / 1e9, 4),
            gmacs_per_s=round(one.macs / 1e9 / seconds, 2),
            time_over_products=round(one.latency.median / (one.macs / rate), 4),
        )
        own = found.get(built[name].own)
        if own is not None:
            row |= dict(own=built[name].own, **spread('speedup_over_own', one.speedup(own)))
            row |= spread('realised', one.realised(own))
        yield row
    yield dict(contender='products', gmacs_per_s=round(rate / 1e6, 2))


def spread(name: str, values: Spread) -> Row:
    """Median and quartiles as fields of a row."""
    of = values.rounded()
    key = 'median_ms' if name == 'ms' else name
    return {key: of['median'], f'{name}_lower': of['lower'], f'{name}_upper': of['upper']}


def aims(rows: Sequence[Row]) -> Iterator[tuple[Aim, Row]]:
    """Aims with their rows, where measured."""
    by_key = {(row['group'], row.get('contender')): row for row in rows}
    for aim in AIMS:
        row = by_key.get((aim.group, aim.contender), {})
        if aim.field in row:
            yield aim, row


TERMS = """\
- **Models** have random weights, the same in every contender, and run on generated images of
  512x512 (Mask R-CNN: 800x1216), float32 unless said, batch 1. Random weights find hardly any
  objects, so a detector's times leave out its mask heads.
- **Timed**: a segmentor from images to logits of their size, a detector to its predictions, a
  backbone to its maps. Outputs are compared first.
- **Medians** over rounds in which every contender runs once on the same image, in an order drawn
  anew.
- **The host, eager**, runs in a process of its own, as without mmdyn: `prepare_for_inference` keeps
  freed memory, which acts on a whole process. *Memory kept* is the same model in the process of
  ours.
- **Best dense runtime**: the fastest of the host, eager (every way) or compiled, onnxruntime and
  OpenVINO.
- **Own dense**: our dense model, or the dense one of the same runtime. **Realised**: the speed-up
  over it divided by the ratio of executed multiply-adds.
- **Time over that of its products**: the time over what the executed multiply-adds take at the best
  rate of any matrix product in the same rounds, Winograd's counted as executed.
- **Deviation**: the largest difference over the largest value; of ours prepared from ours
  unprepared where something is chosen, else from the host's.
- **Static and tiles** have a backbone at keep ratios 0.7, 0.5, 0.3 (DeiT: 0.7, 0.49, 0.343).
- **ConvNeXt** comes to mmseg from mmpretrain only: ours at keep ratio 1 stands in for it, under a
  stock UPerHead.
"""


def report(results: Mapping[str, Any]) -> str:
    """Format the results as Markdown."""
    rows = results['rows']
    packages = results['versions'] | results['runtimes']
    parts = [
        '# How fast are whole models on a CPU?\n',
        "Ours and the hosts', plain and [prepared](../docs/prepare.md), beside onnxruntime, "
        'OpenVINO and Inductor: `python benchmarks/cpu_runtimes.py`.\n',
        f'{describe(results["machine"], packages)}.\n',
        *(['**Tiny models, a smoke test: these numbers mean nothing.**\n'] * results['quick']),
        TERMS,
    ]
    reached = [
        (
            aim.group,
            aim.contender,
            f'{MEANING[aim.field]} {"≥" if aim.at_least else "≤"} {aim.value:g}',
            FORMS[aim.field].format(row[aim.field]),
            'reached' if aim.reached(row) else 'not reached',
        )
        for aim, row in aims(rows)
    ]
    if reached:
        parts += ['## Aims\n', to_markdown(('group', 'contender', 'aim', 'measured', ''), reached)]
    for name in dict.fromkeys(row['group'] for row in rows):
        parts.append(f'## {name}\n')
        parts += group_page([row for row in rows if row['group'] == name])
    return '\n'.join(parts)


def group_page(rows: Sequence[Row]) -> Iterator[str]:
    """Text and table of a group's rows."""
    measured = [row for row in rows if 'median_ms' in row]
    if measured:
        first = measured[0]
        rate = next(row['gmacs_per_s'] for row in rows if row['contender'] == 'products')
        yield (
            f'{first["size"]}, {first["threads"]} thread(s), {first["rounds"]} rounds, load '
            f'average {first["load_average"]} before. Best dense runtime: {first["best"]}; the '
            f'best matrix product: {rate:g} GMAC/s.\n'
        )
        headings = ('contender', 'ms [quartiles]', *COLUMNS)
        yield to_markdown(headings, map(cells, measured))
    for row in rows:
        if 'failed' in row:
            yield f'Not measured: {row["failed"]}.\n'
        if 'uncounted' in row:
            yield f'- {row["contender"]}: its GMACs are a lower bound, without {row["uncounted"]}\n'
        if 'missing' in row:
            yield f'- {row["contender"]}: not measured, {row["missing"]}\n'


def cells(row: Row) -> tuple[str, ...]:
    """Cells of a row in a group's table; a dash where there is no value."""
    times = Spread(row['median_ms'], row['ms_lower'], row['ms_upper']).text('{:.0f}')
    figures = (form.format(row[key]) if key in row else '-' for key, form in COLUMNS.values())
    return (row['contender'], times, *figures)


def kind_of(contender: str) -> str:
    """Kind of a contender, for its bar's colour."""
    first = contender.split()[0]
    if first in cpu_models.RUNTIMES:
        return first
    kind = 'ours' if first == 'ours' else 'host'
    if contender.endswith(cpu_models.RUNTIMES):
        return f'{kind}, exported'
    return f'{kind}, prepared' if 'prepared' in contender else kind


def draw(results: Mapping[str, Any]) -> Figure:
    """Draw speed-ups over the best dense runtime, a panel per group."""
    wanted = {
        (aim.group, aim.contender): aim.value for aim in AIMS if aim.field == 'speedup_over_best'
    }
    panels: dict[str, list[Bar]] = {}
    for row in results['rows']:
        if 'speedup_over_best' not in row:
            continue
        name = row['contender']
        ends = (row[f'speedup_over_best{end}'] for end in ('', '_lower', '_upper'))
        kind = kind_of(name)
        note = f'{row["speedup_over_best"]:.2f}x'
        bar = Bar(name, kind, *ends, note, wanted.get((row['group'], name)))
        panels.setdefault(f'{row["group"]}, {row["size"]}', []).append(bar)
    machine = results['machine']
    title = f'Over the best dense runtime: {machine["cpu"]}, {machine["threads"]} thread(s)'
    return draw_bars(panels or {'nothing was measured': []}, 'times as fast', title)


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
    write_text((args.out / FILE).with_suffix('.md'), page)
    write_figure((args.out / FILE).with_suffix('.png'), draw(results), dpi=80)
    print(page)
    return 1 if any('failed' in row for row in results['rows']) else 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
