"""Export a trained model, with sparse execution, to ONNX or as a torch.export program."""

import argparse
import copy
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for use from a checkout

from mmdyn import cli
from mmdyn.checks import is_address

IMAGES = 4


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The graph takes normalised images and returns logits of their size (segmentor), or '
        "the neck's maps (detector). Its metadata holds mean, std, class names and more. "
        f'{cli.EPILOG}',
    )
    add = parser.add_argument
    add('config', help='the config: a file, or a packaged one as mmdyn::NAME.py')
    add('checkpoint', help='the weights: a file or an address')
    add('--format', choices=('onnx', 'torch-export'), default='onnx')
    out_help = 'output file (default: CHECKPOINT with .onnx or .pt2; required for an address)'
    add('--out', type=Path, metavar='FILE', help=out_help)
    add(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="size of the images in pixels (default: the data_preprocessor's); with --dynamic, the "
        'size for comparison and timing',
    )
    add('--batch', type=int, default=1, metavar='N', help='images per batch (default: 1)')
    add(
        '--dynamic',
        action='store_true',
        help='one graph for all sizes, usually in steps of 32 pixels',
    )
    add('--opset', type=int, metavar='N', help='ONNX opset, 18 to 22 (default: 20)')
    ratios = cli.add_keep_ratio_arguments(parser)
    dense = dict(action='store_const', const=1.0, dest='keep_ratio', help='--keep-ratio 1')
    ratios.add_argument('--dense', **dense)
    cli.add_prepare_argument(parser, default=True, where='; not with --dynamic')
    add('--no-verify', action='store_true', help='do not compare the graph with the model')
    images_help = 'pictures for comparison and timing, resized (default: generated ones)'
    add('--images', nargs='+', metavar='FILE', help=images_help)
    add('--time', action='store_true', help='time the graph against that of the dense model')
    rounds_help = 'timed calls of each graph (default: %(default)s)'
    add('--rounds', type=cli.count, default=20, help=rounds_help)
    add('--threads', type=cli.count, default=1, help='threads for timing (default: %(default)s)')
    add('--report', type=Path, metavar='FILE.json', help='write a report here')
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.out is None and is_address(args.checkpoint):
        parser.error(f'--out FILE is required, as CHECKPOINT is an address, {args.checkpoint}')
    if args.opset is not None and args.format != 'onnx':
        parser.error('--opset is for --format onnx')
    return args


def main(argv: list[str] | None = None) -> int:
    """Export; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries
    with cli.exit_on_bad_input(), cli.checkpoints_as_data(args.trust_checkpoint):
        from mmdyn.checks import check_file, prepare_file
        from mmdyn.deploy import graphs, job, left_out, metadata, parity, size_divisor
        from mmdyn.engine.model_check import channels_of, preprocessor_of
        from mmdyn.engine.picture_reader import reader_of
        from mmdyn.models.deciding import keep_everything
        from mmdyn.models.prepared import prepare_for_inference
        from mmdyn.whole_files import write_json

        graphs.require_packages(args.format)
        suffix = graphs.SUFFIXES[args.format]
        path = args.out or Path(args.checkpoint).with_suffix(suffix)
        if path.suffix != suffix:
            raise ValueError(f'--format {args.format} writes {suffix} files, got --out {path}')
        check_file('--out', path)
        prepare_file('--report', args.report)
        ratios = dict(keep_ratio=args.keep_ratio, keep_ratios=args.keep_ratios)
        loaded = cli.load_model(args, **ratios)
        loaded.report.check_in_use(loaded.model)
        model, cfg = loaded.model, loaded.cfg
        # Prepared layers need the sizes of maps as plain numbers.
        if args.prepare and not args.dynamic:
            prepare_for_inference(model)
        hw = args.shape or preprocessor_of(cfg).get('size')
        if hw is None:
            raise ValueError('the config has no data_preprocessor.size: give --shape H W')
        opset = graphs.DEFAULT_OPSET if args.opset is None else args.opset
        channels = channels_of(cfg)
        task = job.Job(args.format, tuple(hw), args.batch, args.dynamic, opset, channels)
        job.check_job(model, task)
        size = f'multiples of {size_divisor(model)}' if task.dynamic else list(task.hw)
        about = metadata.metadata_of(model, cfg, loaded.dataset_meta, size)
        if args.images:
            images = metadata.read_images(args.images, task.hw, about, reader_of(cfg))
        else:
            images = parity.made_up_images(IMAGES, task.hw, channels=channels)
        # Whole batches: the last one is filled up with the first images.
        images = images[
            [i % len(images) for i in range(-(-len(images) // task.batch) * task.batch)]
        ]
        job.write(model, task, path, about)
    batch = images[: task.batch]
    report = {
        'file': str(path),
        'megabytes': round(path.stat().st_size / 1e6, 1),
        'format': task.format,
        'opset': task.opset if task.format == 'onnx' else None,
        'batch': task.batch,
        'size': about['size'],
        'keep_ratios': about['keep_ratios'],
        'left_out': left_out(model),
        'multiply_adds': job.multiply_adds(model, batch, task.dynamic),
    }
    if args.time:
        report |= job.compare_with_dense(model, task, path, images, args.rounds, args.threads)
        dense = keep_everything(copy.deepcopy(model))
        report['dense_multiply_adds'] = job.multiply_adds(dense, batch, task.dynamic)
        report |= {'speed_up': round(report['dense_ms'] / report['ms'], 3), 'threads': args.threads}
    parities = [] if args.no_verify else job.verify(model, task, path, images)
    report['parity'] = [asdict(parity) | {'holds': parity.holds} for parity in parities]
    if args.report:
        write_json(args.report, report)
    print('\n'.join(lines_of(report)))
    if all(parity.holds for parity in parities):
        return 0
    print(
        'error: the outputs of graph and model differ, see parity above; please report it. '
        '(Untrained predictors give all locations the same score, so rounding selects.)',
        file=sys.stderr,
    )
    return 1


def lines_of(report: dict) -> list[str]:
    """The report for the terminal."""
    size = report['size'] if isinstance(report['size'], str) else '{}x{}'.format(*report['size'])
    lines = [
        f'file         {report["file"]} ({report["megabytes"]} MB)',
        f'images       batch {report["batch"]}, {size} pixels',
        f'keep ratios  {", ".join(f"{ratio:g}" for ratio in report["keep_ratios"])}',
        f'work         {report["multiply_adds"] / 1e9:.3f} G multiply-adds',
    ]
    if 'dense_ms' in report:
        lines[-1] += f', {report["dense_multiply_adds"] / 1e9:.3f} G dense'
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
    return lines + [f'left out     {name}: {why}' for name, why in report['left_out'].items()]


if __name__ == '__main__':
    sys.exit(cli.run(main))
