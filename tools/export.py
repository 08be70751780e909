"""Export a trained model as ONNX or as a torch.export program, sparse execution included."""

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec('mmdyn') is None:  # run from a checkout, nothing installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdyn import cli

IMAGES = 4


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The graph takes normalised images and gives logits of their size (segmentor), or '
        "the neck's maps (detector); what it needs to know beside it, mean, std and class names, "
        f'is in its metadata. {cli.EPILOG}',
    )
    parser.add_argument('config', help='the config: a file, or a packaged one as mmdyn::NAME.py')
    parser.add_argument('checkpoint', help='the weights, a file')
    parser.add_argument('--format', choices=('onnx', 'torch-export'), default='onnx')
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help="where to (default: the checkpoint's name with .onnx or .pt2)",
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="size of the images in pixels (default: the data_preprocessor's); with --dynamic, "
        'the size at which the graph is compared and timed',
    )
    parser.add_argument(
        '--batch', type=int, default=1, metavar='N', help='images at a time (default: %(default)s)'
    )
    parser.add_argument(
        '--dynamic', action='store_true', help='one graph for every size, in steps of 32 pixels'
    )
    parser.add_argument('--opset', type=int, metavar='N', help="ONNX's, 18 to 22 (default: 20)")
    ratios = parser.add_mutually_exclusive_group()
    ratios.add_argument(
        '--keep-ratio',
        type=float,
        metavar='R',
        help="keep ratio of the first predictor, as for test.py (default: the config's)",
    )
    ratios.add_argument(
        '--keep-ratios', type=float, nargs='+', metavar='R', help='keep ratio of each predictor'
    )
    ratios.add_argument(
        '--dense',
        action='store_const',
        const=1.0,
        dest='keep_ratio',
        help='keep everything; the checkpoint may be a dense one',
    )
    parser.add_argument(
        '--verify',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='compare the graph with the model (on by default)',
    )
    parser.add_argument(
        '--images',
        nargs='+',
        metavar='FILE',
        help='pictures to compare and time with, resized (default: made-up ones)',
    )
    parser.add_argument(
        '--time', action='store_true', help='time the graph against that of the dense model'
    )
    parser.add_argument(
        '--rounds', type=cli.count, default=20, help='timed calls of each (default: %(default)s)'
    )
    parser.add_argument(
        '--threads', type=cli.count, default=1, help='to time with (default: %(default)s)'
    )
    parser.add_argument('--report', type=Path, metavar='FILE.json', help='write the report there')
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.opset is not None and args.format != 'onnx':
        parser.error('--opset is for --format onnx')
    return args


def prepare(args: argparse.Namespace) -> tuple:
    """Loads and checks everything: the model, the job, metadata, images and the path."""
    import torch

    from mmdyn.checks import check_file
    from mmdyn.deploy import formats, job, load, parity
    from mmdyn.deploy.exportable import size_divisor
    from mmdyn.engine.model_check import channels_of
    from mmdyn.engine.reading import reader_of

    formats.require_packages(args.format)
    suffix = job.SUFFIXES[args.format]
    path = args.out or Path(args.checkpoint).with_suffix(suffix)
    if path.suffix != suffix:
        raise ValueError(f'--out {path} is for --format {args.format}: give a name with {suffix}')
    for file in (path, args.report):
        if file is None:
            continue
        if not file.absolute().parent.is_dir():
            raise FileNotFoundError(f'there is no folder {file.absolute().parent}: make it first')
        check_file('--out' if file == path else '--report', file)
    from mmdyn.engine.loading import load_model  # here: it imports the hosts' models, seconds

    loaded = load_model(
        args.config,
        args.checkpoint,
        keep_ratio=args.keep_ratio,
        keep_ratios=args.keep_ratios,
        cfg_options=args.cfg_options,
        trust_checkpoint=args.trust_checkpoint,
    )
    loaded.report.check_in_use(loaded.model)
    model, cfg = loaded.model, loaded.cfg
    hw = args.shape or (cfg.model.get('data_preprocessor') or {}).get('size')
    if hw is None:
        raise ValueError(
            'the config states no size (data_preprocessor.size): give it, --shape H W, for '
            'example --shape 800 1216'
        )
    opset = args.opset if args.opset is not None else formats.DEFAULT_OPSET
    channels = channels_of(cfg)
    task = job.Job(args.format, tuple(hw), args.batch, args.dynamic, opset, channels)
    job.check_job(model, task)
    size = f'multiples of {size_divisor(model)}' if task.dynamic else list(task.hw)
    about = load.describe(model, cfg, loaded.dataset_meta, size)
    if args.images:
        images = load.read_images(args.images, task.hw, about, reader_of(cfg))
    else:
        images = parity.made_up_images(IMAGES, task.hw, channels=channels)
    # Whole batches: the last one is filled up from the beginning.
    whole = -(-len(images) // task.batch) * task.batch
    images = images[torch.arange(whole) % len(images)]
    return model, task, about, images, path


def main(argv: list[str] | None = None) -> int:
    """Exports; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries
    with cli.exit_on_bad_input(), cli.checkpoints_as_data(args.trust_checkpoint):
        model, task, about, images, path = prepare(args)
        from mmdyn.deploy import executed_multiply_adds, job, left_out

        job.write(model, task, path, about)
    report = {
        'file': str(path),
        'megabytes': round(path.stat().st_size / 1e6, 1),
        'format': task.format,
        'opset': task.opset if task.format == 'onnx' else None,
        'batch': task.batch,
        'size': about['size'],
        'keep_ratios': about['keep_ratios'],
        'left_out': left_out(model),
        'multiply_adds': executed_multiply_adds(path, images[: task.batch]),
    }
    if args.time:
        report |= job.compare_with_dense(model, task, path, images, args.rounds, args.threads)
        report |= {'speed_up': round(report['dense_ms'] / report['ms'], 3), 'threads': args.threads}
    parities = job.verify(model, task, path, images) if args.verify else []
    report['parity'] = job.parity_json(parities)
    if args.report:
        from mmdyn.whole_files import write_json

        write_json(args.report, report)
    print('\n'.join(lines_of(report)))
    if not all(parity.holds for parity in parities):
        print(
            'error: the graph does not compute what the model does, see parity above; please '
            'report it. (Untrained predictors score all locations alike, so that rounding '
            'decides which are kept.)',
            file=sys.stderr,
        )
        return 1
    return 0


def lines_of(report: dict) -> list[str]:
    """The report for people."""
    size = report['size'] if isinstance(report['size'], str) else '{}x{}'.format(*report['size'])
    ratios = ', '.join(f'{ratio:g}' for ratio in report['keep_ratios'])
    work = f'{report["multiply_adds"] / 1e9:.3f} G multiply-adds'
    if 'dense_ms' in report:
        work += f', {report["dense_multiply_adds"] / 1e9:.3f} G dense'
    lines = [
        f'file         {report["file"]} ({report["megabytes"]} MB)',
        f'images       batch {report["batch"]}, {size} pixels',
        f'keep ratios  {ratios}',
        f'work         {work}, as executed',
    ]
    if 'dense_ms' in report:
        lines.append(
            f'time         {report["ms"]:.1f} ms, {report["dense_ms"]:.1f} ms dense '
            f'({report["speed_up"]:.2f}x; medians, {report["threads"]} threads)'
        )
    for parity in report['parity']:
        agreement = parity['agreement']
        classes = '' if agreement is None else f'{100 * agreement:.3f} % of the classes equal, '
        lines.append(
            f'parity       {parity["size"][0]}x{parity["size"][1]}, {parity["images"]} different '
            f'images: {classes}largest difference {parity["absolute"]:.1e} '
            f'(relative {parity["relative"]:.1e}), {parity["differing"]} beyond tolerance'
        )
    lines += [f'left out     {name}: {why}' for name, why in report['left_out'].items()]
    return lines


if __name__ == '__main__':
    sys.exit(cli.run(main))
