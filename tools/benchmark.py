"""Time a config's model: dense, sparse and random selection, at any ratio, shape and batch size."""

import argparse
import importlib.util
import math
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec('mmdyn') is None:  # run from a checkout, nothing installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdyn import cli

WARMUP = 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='In every round each contender runs once, in an order drawn anew, on the same '
        'images; the next round takes the next images. ms is the median with its quartiles; '
        "speed-up the median over rounds of the dense model's time over the contender's; GMACs "
        "10^9 multiply-adds of a batch; realised the speed-up over the multiply-adds' ratio; peak "
        'the memory that a call takes beyond weights and images. Dense means every keep ratio at '
        f'1, with the same weights. docs/benchmarks.md says more. {cli.EPILOG}',
    )
    parser.add_argument('config', help='the config: a file, or a packaged one as mmdyn::NAME.py')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='the weights: a file or an address (default: random ones; what a detector finds, '
        'and so what its heads take, depends on them)',
    )
    parser.add_argument(
        '--part',
        choices=('backbone', 'end-to-end', 'both'),
        default='both',
        help='the backbone, the whole model from normalised images to predictions, or both '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--shape',
        type=cli.count,
        nargs=2,
        action='append',
        dest='shapes',
        metavar=('H', 'W'),
        help="size that images are resized to; may be given again (default: the config's crop, "
        'else 512 512, or 800 1216 in mmdet)',
    )
    parser.add_argument(
        '--batch-size', type=cli.count, nargs='+', default=[1], metavar='N', help='(default: 1)'
    )
    add_choice_arguments(parser)
    add_measuring_arguments(parser)
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says who takes part."""
    cli.add_swept_ratio_arguments(parser, "the config's keep ratios")
    cli.add_policy_argument(parser)
    parser.add_argument(
        '--stock',
        action='store_true',
        help="also measure the host's own dense model with the same weights (Swin in mmseg and "
        'mmdet)',
    )


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how to measure, on which images, and where the results go."""
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help="pictures to run on (default: the config's validation set, or generated noise if it "
        'is not there)',
    )
    cli.add_timing_arguments(parser)
    parser.add_argument(
        '--min-seconds',
        type=float,
        default=0.0,
        metavar='S',
        help='go on with more rounds until so many seconds were measured for each case',
    )
    parser.add_argument(
        '--dtype',
        choices=('fp32', 'bf16', 'fp16'),
        default='fp32',
        help='bf16 and fp16 run under autocast (default: %(default)s)',
    )
    parser.add_argument(
        '--compile', action='store_true', help="compile what can be of it; not the host's own model"
    )
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='write every figure there')
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw a bar chart there')


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the process with code 2 if a value makes no sense."""
    if not 0 <= args.min_seconds < math.inf:
        parser.error(f'--min-seconds must be 0 or more, and finite, got {args.min_seconds}')
    for option, path, ending in (('--out', args.out, '.json'), ('--plot', args.plot, '.png')):
        if path is not None and path.suffix != ending:
            parser.error(f'{option} must end in {ending}, got {path}')


def main(argv: list[str] | None = None) -> int:
    """Measures; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries; they would tear the progress display
    with cli.exit_on_bad_input():
        from mmdyn.analysis.measuring import threads
        from mmdyn.checks import check_file

        for option, path in (('--out', args.out), ('--plot', args.plot)):
            if path is not None:
                check_file(option, path)
                path.parent.mkdir(parents=True, exist_ok=True)

    with cli.checkpoints_as_data(args.trust_checkpoint), threads(args.threads):
        results = run(args)
    show(results)
    if args.out is not None:
        from mmdyn.whole_files import write_json

        write_json(args.out, results)
    if args.plot is not None:
        from mmdyn.whole_files import write_figure

        write_figure(args.plot, draw(results), dpi=150)
    return 0


def run(args: argparse.Namespace) -> dict:
    """Prepares and measures; returns all that is known, as JSON can hold it."""
    from mmdyn.analysis import model_benchmark as bench
    from mmdyn.analysis.images import find_pictures, make_batches
    from mmdyn.analysis.lines import lines_of
    from mmdyn.analysis.machine import describe_machine, load_average, versions
    from mmdyn.analysis.memory import memory_method
    from mmdyn.analysis.progress import Meter
    from mmdyn.analysis.rows import count_lines

    with cli.exit_on_bad_input():
        loaded = load(args)
        for note in loaded.notes:
            print(note, file=sys.stderr)
        ladders = [*map(loaded.ladder, args.keep_ratio or ()), *map(tuple, args.keep_ratios)]
        lines = lines_of(
            loaded,
            ladders,
            policy=cli.make_policy(args.policy),
            random=not args.no_random,
            stock=args.stock,
            seed=args.seed,
        )
        files, source = find_pictures(loaded.cfg, args.images, args.num_images)
        cases = cases_of(args, loaded)
        gmacs = {}
        for case in cases:
            (batch, *_) = make_batches(
                loaded, pictures(loaded.cfg, files[:1], case, 1), case.batch_size
            )
            gmacs[case] = count_lines(lines, case.part, [batch], dtype=args.dtype)
        if args.compile:
            lines = bench.compile_lines(lines)

    costs = {case.name: case.batch_size * case.shape[0] * case.shape[1] for case in cases}
    rows = []
    load_before = load_average()
    with Meter(costs, sys.stderr) as meter:
        for case in cases:
            batches = make_batches(
                loaded, pictures(loaded.cfg, files, case, args.num_images), case.batch_size
            )
            with meter.stage(case.name, len(lines) * (WARMUP + args.rounds)) as advance:
                rows += bench.measure_case(
                    lines,
                    case,
                    batches,
                    args.dtype,
                    gmacs[case],
                    rounds=args.rounds,
                    seconds=args.min_seconds,
                    warmup=WARMUP,
                    seed=args.seed,
                    on_call=advance,
                )
    settings = dict(
        config=loaded.name,
        weights=loaded.weights,
        images=f'{len(files) or args.num_images} {source}',
        device=loaded.device.type,
        dtype=args.dtype,
        compiled=args.compile,
        seed=args.seed,
        peak_memory=memory_method(loaded.device),
        load_average=load_before,
    )
    return dict(
        machine=describe_machine(loaded.device),
        versions=versions(),
        settings=settings,
        rows=rows,
    )


def load(args: argparse.Namespace):
    """The model, on its device."""
    from mmengine.device import get_device

    from mmdyn.engine.loading import load_model

    return load_model(
        args.config,
        args.checkpoint,
        cfg_options=args.cfg_options,
        device=args.device or get_device(),
        trust_checkpoint=args.trust_checkpoint,
        seed=args.seed,
    )


def cases_of(args: argparse.Namespace, loaded) -> list:
    """What is measured on: every part at every shape and batch size."""
    from mmdyn.analysis.images import default_shape
    from mmdyn.analysis.lines import PARTS
    from mmdyn.analysis.model_benchmark import Case

    return [
        Case(part, tuple(shape), batch_size)
        for part in (PARTS if args.part == 'both' else (args.part,))
        for shape in args.shapes or [default_shape(loaded.cfg)]
        for batch_size in args.batch_size
    ]


def pictures(cfg, files: list, case, count: int) -> list:
    """The pictures of a case: files, or noise where there are none."""
    from mmdyn.analysis.images import make_noise
    from mmdyn.engine.model_check import channels_of
    from mmdyn.engine.reading import reader_of

    if not files:
        return make_noise(count, case.shape, channels=channels_of(cfg))
    reader = reader_of(cfg)
    return [reader.read_resized(file, case.shape) for file in files]


def by_case(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows under the names of their cases."""
    from mmdyn.analysis.model_benchmark import Case

    found: dict[str, list[dict]] = {}
    for row in rows:
        case = Case(row['part'], tuple(row['shape']), row['batch_size'])
        found.setdefault(case.name, []).append(row)
    return found


def show(results: dict) -> None:
    """Prints a table for each case, and what all of them were measured with."""
    from mmdyn.analysis.machine import describe
    from mmdyn.analysis.model_benchmark import HEADINGS, cells
    from mmdyn.analysis.tables import print_table, print_text

    for name, rows in by_case(results['rows']).items():
        print_table(HEADINGS, map(cells, rows), name)
    settings = results['settings']
    how = ', compiled' if settings['compiled'] else ''
    rounds = '/'.join(str(rows[0]['rounds']) for rows in by_case(results['rows']).values())
    print_text(
        f'{settings["config"]} with {settings["weights"]}, {settings["dtype"]}{how}; '
        f'{rounds} interleaved rounds on {settings["images"]}. ms and speed-up: median '
        f'[quartiles]. Peak MiB: {settings["peak_memory"]}. '
        f'{describe(results["machine"], results["versions"])}.'
    )


def draw(results: dict):
    """The bar chart, a figure of matplotlib's."""
    from mmdyn.visualization.bars import Bar, draw_bars

    panels = {
        name: [
            Bar(row['name'], row['kind'], **as_bar(row), note=f'{row["speedup"]["median"]:.2f}x')
            for row in rows
        ]
        for name, rows in by_case(results['rows']).items()
    }
    settings = results['settings']
    title = f'{settings["config"]}, {settings["weights"]}, {settings["dtype"]}'
    return draw_bars(panels, 'ms per batch (median, quartiles); behind it the speed-up', title)


def as_bar(row: dict) -> dict[str, float]:
    """A row's time as a bar's length and whisker."""
    return dict(value=row['ms']['median'], lower=row['ms']['lower'], upper=row['ms']['upper'])


if __name__ == '__main__':
    sys.exit(cli.run(main))
