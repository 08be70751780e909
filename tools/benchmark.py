"""Time a model dense, sparse and with random selection, at any ratio, shape and batch size."""

import argparse
import itertools
import math
import sys
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for use from a checkout

from mmdyn import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Every variant runs once per round, on the same images. Dense means every keep '
        'ratio at 1, with the same weights; realised is the speed-up over the ratio of '
        f'multiply-adds. See docs/benchmarks.md. {cli.EPILOG}',
    )
    cli.add_model_arguments(parser, "the cost of a detector's heads depends on its detections")
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
        help="size that images are resized to; repeatable (default: the config's crop, else "
        '512 512, or 800 1216 in mmdet)',
    )
    parser.add_argument(
        '--batch-size', type=cli.count, nargs='+', default=[1], metavar='N', help='(default: 1)'
    )
    cli.add_swept_ratio_arguments(parser, "the config's keep ratios")
    cli.add_policy_argument(parser)
    parser.add_argument(
        '--stock',
        action='store_true',
        help="also time the host's own dense model with the same weights (Swin in mmseg and mmdet)",
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help="pictures to use (default: the config's validation set, or noise if it is not "
        'available)',
    )
    cli.add_timing_arguments(parser)
    parser.add_argument(
        '--min-seconds',
        type=float,
        default=0.0,
        metavar='S',
        help='run further rounds until each case was timed for S seconds',
    )
    parser.add_argument(
        '--dtype',
        choices=('fp32', 'bf16', 'fp16'),
        default='fp32',
        help='bf16 and fp16 run under autocast (default: %(default)s)',
    )
    parser.add_argument(
        '--compile', action='store_true', help="compile the model; not the host's own"
    )
    cli.add_prepare_argument(parser, default=False, where=", the host's own model too")
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='write all figures here')
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw a bar chart here')
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.min_seconds < math.inf:
        parser.error(f'--min-seconds must be non-negative and finite, got {args.min_seconds}')
    for option, path, ending in (('--out', args.out, '.json'), ('--plot', args.plot, '.png')):
        if path is not None and path.suffix != ending:
            parser.error(f'{option} must end in {ending}, got {path}')
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries; they would break the progress display
    with cli.exit_on_bad_input() as prepared:
        from mmdyn.analysis.measuring import threads
        from mmdyn.checks import prepare_file
        from mmdyn.whole_files import write_figure, write_json

        prepare_file('--out', args.out)
        prepare_file('--plot', args.plot)
        with cli.checkpoints_as_data(args.trust_checkpoint), threads(args.threads):
            settings, cases = run(args, prepared)
    results = report(settings, cases)
    if args.out is not None:
        write_json(args.out, results)
    if args.plot is not None:
        write_figure(args.plot, draw(settings, cases), dpi=150)
    return 0


def run(args: argparse.Namespace, prepared) -> tuple[dict, dict]:
    """Prepare and measure; returns the settings, and case and rows by name of the case."""
    from mmengine.device import get_device

    from mmdyn.analysis.images import find_pictures
    from mmdyn.analysis.lines import compiled, lines_of, set_policy
    from mmdyn.analysis.machine import load_average
    from mmdyn.analysis.measuring import count_all, memory_method
    from mmdyn.analysis.progress import Meter
    from mmdyn.analysis.rows import WARMUP, measure_lines, rows_of
    from mmdyn.models.prepared import prepare_for_inference

    loaded = cli.load_model(args, device=args.device or get_device(), seed=args.seed)
    cli.show_notes(loaded)
    set_policy(loaded.model, cli.make_policy(args.policy))
    ladders = [*map(loaded.ladder, args.keep_ratio or ()), *args.keep_ratios]
    choice = dict(random=not args.no_random, stock=args.stock, seed=args.seed)
    lines = lines_of(loaded, ladders, **choice)
    files, source = find_pictures(loaded.cfg, args.images, args.num_images)
    cases = cases_of(args, loaded)
    macs = {}
    for name, case in cases.items():
        batches = make_batches(loaded, files, case, 1)
        case['shape'] = list(batches[0].inputs.shape[-2:])  # including padding
        try:
            runs = {line.name: line.runner(case['part'], args.dtype) for line in lines}
            macs[name] = count_all(runs, batches)
        except RuntimeError as error:
            if args.dtype == 'fp32':
                raise
            # Operators outside torch, such as a detector's NMS, may not support the dtype.
            raise ValueError(
                f'the {case["part"]} model does not run in {args.dtype} here ({error}): measure '
                'only the backbone, or use fp32'
            ) from error
    if args.prepare and loaded.device.type == 'cpu':
        for model in {id(line.model): line.model for line in lines}.values():
            prepare_for_inference(model)
    lines = compiled(lines) if args.compile else lines
    prepared()
    settings = dict(
        config=loaded.name,
        weights=loaded.weights,
        images=f'{len(files) or args.num_images} {source}',
        device=loaded.device.type,
        dtype=args.dtype,
        compiled=args.compile,
        prepared=args.prepare and loaded.device.type == 'cpu',
        seed=args.seed,
        peak_memory=memory_method(loaded.device),
        load_average=load_average(),
    )
    timing = dict(rounds=args.rounds, seconds=args.min_seconds, seed=args.seed, dtype=args.dtype)
    costs = {name: case['batch_size'] * math.prod(case['shape']) for name, case in cases.items()}
    steps = len(lines) * (WARMUP + args.rounds)
    with Meter(costs, sys.stderr) as meter:
        for name, case in cases.items():
            batches = make_batches(loaded, files, case, args.num_images)
            timing |= dict(macs=macs[name], memory=True)
            with meter.stage(name, steps) as advance:
                found = measure_lines(lines, case['part'], batches, on_call=advance, **timing)
            cases[name] = case, rows_of(lines, found)
    return settings, cases


def cases_of(args: argparse.Namespace, loaded) -> dict[str, dict]:
    """Cases to measure, by name: every part, shape and batch size."""
    from mmdyn.analysis.images import default_shape
    from mmdyn.analysis.lines import PARTS

    parts = PARTS if args.part == 'both' else (args.part,)
    shapes = args.shapes or [default_shape(loaded.cfg)]
    return {
        f'{part}, {height}x{width}, batch {size}': dict(
            part=part, shape=[height, width], batch_size=size
        )
        for part, (height, width), size in itertools.product(parts, shapes, args.batch_size)
    }


def make_batches(loaded, files: list, case: dict, count: int) -> list:
    """Batches of at most ``count`` pictures: the files, or noise without files."""
    from mmdyn.analysis import images
    from mmdyn.engine.model_check import channels_of
    from mmdyn.engine.picture_reader import reader_of

    shape = tuple(case['shape'])
    if files:
        reader = reader_of(loaded.cfg)
        pictures = [reader.read_resized(file, shape) for file in files[:count]]
    else:
        pictures = images.make_noise(count, shape, channels=channels_of(loaded.cfg))
    return images.make_batches(loaded, pictures, case['batch_size'])


def report(settings: dict, cases: dict) -> dict:
    """Print a table for each case; returns all results for JSON."""
    from mmdyn.analysis.machine import describe, describe_machine, versions
    from mmdyn.analysis.rows import table
    from mmdyn.analysis.tables import print_table, print_text

    for name, (_, rows) in cases.items():
        print_table(*table(rows), name)
    about = dict(machine=describe_machine(settings['device']), versions=versions())
    how = ', compiled' if settings['compiled'] else ''
    rounds = '/'.join(str(len(rows[0].latency.samples)) for _, rows in cases.values())
    print_text(
        f'{settings["config"]} with {settings["weights"]}, {settings["dtype"]}{how}; '
        f'{rounds} interleaved rounds on {settings["images"]}. ms and speed-up: median '
        f'[quartiles]. Peak MiB: {settings["peak_memory"]}. {describe(*about.values())}.'
    )
    rows = [case | row.as_json() for case, rows in cases.values() for row in rows]
    return dict(about, settings=settings, rows=rows)


def draw(settings: dict, cases: dict):
    """Draw the bar chart with matplotlib."""
    from mmdyn.visualization.bars import Bar, draw_bars

    def bar(row) -> Bar:
        length = (row.latency.median, row.latency.lower, row.latency.upper)
        return Bar(row.line.name, row.line.kind, *length, f'{row.speedup.median:.2f}x')

    panels = {name: list(map(bar, rows)) for name, (_, rows) in cases.items()}
    title = f'{settings["config"]}, {settings["weights"]}, {settings["dtype"]}'
    return draw_bars(panels, 'ms per batch (median, quartiles), with speed-up', title)


if __name__ == '__main__':
    sys.exit(cli.run(main))
